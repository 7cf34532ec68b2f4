"""Bases whose matrices are stored in 4 or 8 bits (bitsandbytes): read from 16-bit files, or from the cache."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.models.base.quantized_cache import entry_folder, is_whole, made_once, write_entry
from adaptkit.models.base.reading import Report, absent, read_weights, storage

if TYPE_CHECKING:
    from torch import nn

    from adaptkit.models.base.source import ModelSource
    from adaptkit.models.precision import Numerics

# Files of the cache: what the host holds at once while they are written from an accelerator.
SHARD_SIZE = "1GB"


def read_quantized(auto_class: Any, source: ModelSource, config: Any, numerics: Numerics) -> tuple[Any, Report]:
    """Returns a quantised model and what its files lack.

    Each tensor is quantised as it is read, so that never more than one of them is there as a whole. New modules and
    output embeddings stay whole; what the base's files lack is drawn anew also where the rest is from the cache.

    Args:
        auto_class: ``AutoModel``, ``AutoModelForSequenceClassification`` …
        source: Which base.
        config: Of the model.
        numerics: Precision, and where the model shall be.
    """
    spec, options = source.spec, storage(numerics)
    outline, missing = read_weights(auto_class, spec, config, device_map="meta")  # reads the files' headers only
    settings = _settings(numerics, _unquantized_modules(outline, missing))
    entry = _entry(source, outline, settings, numerics) if spec.cache_quantized else None
    whole = entry is not None and is_whole(entry)
    with ExitStack() as stack:
        if entry is not None and not whole:
            stack.enter_context(made_once(entry))
            whole = is_whole(entry)
        if whole:
            config.quantization_config = settings.to_dict()  # by this transformers knows that it is done already
            model, report = read_weights(auto_class, spec, config, folder=entry, **options)
            _take_identity(model, outline)
        else:
            model, report = read_weights(auto_class, spec, config, quantization_config=settings, **options)
            if entry is not None:
                write_entry(entry, lambda folder: _save(model, absent(report), folder))
    _keep_gradients_after_evaluation(model)
    _keep_norms_whole(model)
    return model, report


def _settings(numerics: Numerics, skip: list[str]) -> Any:
    """Returns bitsandbytes' settings: QLoRA's NF4 with double quantisation (arXiv:2305.14314), or LLM.int8()."""
    from transformers import BitsAndBytesConfig

    if numerics.precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=numerics.storage_dtype,
        llm_int8_skip_modules=skip,
    )


def _unquantized_modules(outline: Any, report: Report) -> list[str]:
    """Returns the modules that must stay whole: output embeddings, and all that the checkpoint does not have.

    A new module has no weights to quantise: bitsandbytes would leave it unquantised and fail in its first forward.
    """
    output = outline.get_output_embeddings()
    names = {name for name, module in outline.named_modules() if output is not None and module is output}
    return sorted(names | {key.rpartition(".")[0] for key in absent(report)})


def _entry(source: ModelSource, outline: Any, settings: Any, numerics: Numerics) -> Path | None:
    """Returns the cache's folder for a base as it is stored here; None for a base that is not known exactly."""
    if source.fingerprint == "commit:unknown":
        return None
    return entry_folder(
        {
            "base": source.fingerprint,
            "class": type(outline).__name__,
            "settings": settings.to_dict(),
            "dtype": str(numerics.storage_dtype),
            "device": numerics.device.type,  # kernels of another device may round otherwise
            **{library: version(library) for library in ("bitsandbytes", "transformers")},
        }
    )


def _save(model: Any, missing: list[str], folder: Path) -> None:
    """Saves the tensors of a quantised model that come from the base's files."""
    from transformers import GenerationConfig

    # A twin with the same tensors: what saving writes into the config stays apart; a generation config that the base
    # came with may be one that transformers does not save; a quantizer would put the whole state in place of these.
    twin = copy.copy(model)
    twin.config, twin.hf_quantizer = copy.deepcopy(model.config), None
    if twin.can_generate():
        twin.generation_config = GenerationConfig()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in missing}
    twin.save_pretrained(folder, state_dict=tensors, max_shard_size=SHARD_SIZE)


def _take_identity(model: Any, outline: Any) -> None:
    """Gives a model from the cache what it has from the base's folder: name, and how it generates."""
    model.name_or_path = model.config.name_or_path = outline.name_or_path
    if model.can_generate():
        model.generation_config = outline.generation_config


def _keep_gradients_after_evaluation(model: nn.Module) -> None:
    """Switches off bitsandbytes' repacking of 4-bit weights for inference on CPUs with AVX512-BF16.

    One evaluation without gradients repacks the weights, and from then on training gets no gradient
    through the layer.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _keep_norms_whole(model: nn.Module) -> None:
    """Stores layer norms in fp32, as QLoRA does.

    Their output has the dtype of their input. In bf16 they take no fp32 input on a CPU, and PEFT's layers on quantised
    ones give one there.
    """
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()
