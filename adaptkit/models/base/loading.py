"""Loading a base model in the precision that was asked for."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from adaptkit.errors import ModelError
from adaptkit.models.base.host_memory import freed_memory_returned
from adaptkit.models.base.library import as_model_error, quiet_transformers
from adaptkit.models.base.quantized import read_quantized
from adaptkit.models.base.reading import Report, absent, read_weights, storage

if TYPE_CHECKING:
    from torch import nn

    from adaptkit.models.base.source import ModelSource
    from adaptkit.models.precision import Numerics
    from adaptkit.recipe import ModelSpec


def load_model(
    auto_class: Any, source: ModelSource, numerics: Numerics, **config_values: Any
) -> tuple[nn.Module, list[str]]:
    """Makes a model through one of transformers' Auto classes: with the base's weights, or with new ones.

    Args:
        auto_class: ``AutoModel``, ``AutoModelForSequenceClassification`` …
        source: Which model.
        numerics: Storage of the weights. New modules and output embeddings are never quantised.
        config_values: Set on the model's config (``num_labels`` …).

    Returns:
        The model, and the names of the parameters that the checkpoint does not have, or has in another shape; of a
        model with random weights, none.

    Raises:
        ModelError: It cannot be loaded.
    """
    config = copy.deepcopy(source.config)
    config.update(config_values)
    if source.skeleton:
        from adaptkit.models.base.skeleton import make_skeleton

        return make_skeleton(auto_class, source, config, numerics)
    if source.random:
        return _new_model(auto_class, source, config, numerics), []
    from adaptkit.models.base.new_tokens import extend

    spec = source.spec
    with as_model_error(spec), quiet_transformers(), freed_memory_returned():
        if numerics.quantized:
            model, report = read_quantized(auto_class, source, config, numerics)
        else:
            model, report = read_weights(auto_class, spec, config, **storage(numerics))
    missing = absent(report)
    _check_whole(spec, model, report)
    if source.new_tokens is not None:
        with numerics.autocast():
            extend(model, source.new_tokens)
    return model, missing


def _new_model(auto_class: Any, source: ModelSource, config: Any, numerics: Numerics) -> nn.Module:
    """Returns a model with random weights, drawn in fp32 from torch's generator.

    Raises:
        ModelError: Random weights were to be quantised, or the config makes no model.
    """
    if numerics.quantized:
        raise ModelError(
            f"random weights cannot be stored as {numerics.precision}: what is to be learned does not fit into so few "
            "bits",
            where="model.precision",
            allowed="fp32, bf16",
            fix="choose another strategy or precision for a model that is trained from scratch: strategy: full",
        )
    import torch

    # As a whole before anything is cast: the constructors draw first, then the model draws again, and its modules
    # the weights of their children (GPT-2's residual layers), so that a module cast early would get other values.
    with as_model_error(source.spec), quiet_transformers():
        model: nn.Module = auto_class.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():  # Not its buffers: the frequencies of rotary positions stay exact.
        parameter.data = parameter.data.to(numerics.storage_dtype)
    return model


def _check_whole(spec: ModelSpec, model: Any, report: Report) -> None:
    """Raises when the files lack weights of the embedding or of a block: only a head or a pooler may be new."""
    from torch import nn

    embedding = model.get_input_embeddings()
    inside = tuple(
        f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList) or module is embedding
    )
    lost = [name for name in absent(report) if name.startswith(inside)]
    if any(name in lost for name, *_ in report["mismatched_keys"]):
        raise ModelError(
            f"the model {spec.name!r} cannot be loaded: its weights have other shapes than its config says",
            where=spec.name,
            fix="fetch the model again, or restore the config.json that belongs to its weights",
        )
    if lost:
        raise ModelError(
            f"{len(lost)} weights of the base are not in its files: {', '.join(lost[:5])}",
            where=spec.name,
            fix="fetch the model again, or check that its config.json belongs to its weights",
        )
