"""The one call by which weights are read from files, of a base or of the cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptkit.models.precision import Numerics
    from adaptkit.recipe import ModelSpec

# Names of tensors, as transformers reports them.
Report = dict[str, Any]


def read_weights(
    auto_class: Any, spec: ModelSpec, config: Any, *, folder: Path | None = None, **options: Any
) -> tuple[Any, Report]:
    """Returns a model of transformers and what its files lack.

    Args:
        auto_class: ``AutoModel``, ``AutoModelForSequenceClassification`` …
        spec: Names the base.
        config: Of the model.
        folder: Other files with the base's weights.
        **options: Of ``from_pretrained``.
    """
    model, report = auto_class.from_pretrained(
        str(folder or spec.name),
        config=config,
        revision=None if folder else spec.revision,
        trust_remote_code=False,
        use_safetensors=True,  # a pickle could run code
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # a head for another number of labels
        **options,
    )
    return model, report


def absent(report: Report) -> list[str]:
    """Returns the parameters that the files do not have, or have in another shape."""
    return sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})


def storage(numerics: Numerics) -> dict[str, Any]:
    """Returns the options by which weights are stored as they are read: as what, and where.

    An accelerator gets each tensor from the mapped file at once, and it is quantised there; the host never holds the
    model. Its index is named: accelerate compares it with the device that it trains on.
    """
    import torch

    device = numerics.device
    if device.type == "cpu":
        return {"dtype": numerics.storage_dtype}
    index = torch.accelerator.current_device_index() if device.index is None else device.index
    return {"dtype": numerics.storage_dtype, "device_map": {"": torch.device(device.type, index)}}
