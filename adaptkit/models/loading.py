"""Loading a base model in the precision that was asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adaptkit.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adaptkit.models.source import ModelSource
    from adaptkit.recipe import ModelSpec, Precision


def load_model(
    auto_class: Any, source: ModelSource, precision: Precision, **config_values: Any
) -> tuple[nn.Module, list[str]]:
    """Makes a model through one of transformers' Auto classes: with the base's weights, or with new ones.

    Args:
        auto_class: ``AutoModel``, ``AutoModelForSequenceClassification`` …
        source: Which model.
        precision: Storage of the weights. New modules and output embeddings are never quantised.
        config_values: Set on the model's config (``num_labels`` …).

    Returns:
        The model, and the names of the parameters that the checkpoint does not have, or has in another shape; of a
        model with random weights, none.

    Raises:
        ModelError: It cannot be loaded.
    """
    config = copy.deepcopy(source.config)
    config.update(config_values)
    if source.random:
        return _new_model(auto_class, source, config, precision), []
    from adaptkit.models.new_tokens import extend

    spec = source.spec
    quantized = (
        {"quantization_config": _quantization(auto_class, spec, precision, config)} if is_quantized(precision) else {}
    )
    with as_model_error(spec), quiet_transformers():
        model, report = auto_class.from_pretrained(
            spec.name,
            config=config,
            revision=spec.revision,
            trust_remote_code=False,
            use_safetensors=True,  # a pickle could run code
            dtype=_storage_dtype(precision),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # a head for another number of labels
            **quantized,
        )
    missing = _absent(report)
    _check_whole(spec, model, report)
    _keep_gradients_after_evaluation(model)
    if source.new_tokens is not None:
        extend(model, source.new_tokens)
    return model, missing


def _new_model(auto_class: Any, source: ModelSource, config: Any, precision: Precision) -> nn.Module:
    """Returns a model with random weights, drawn in fp32 from torch's generator.

    Raises:
        ModelError: Random weights were to be quantised, or the config makes no model.
    """
    if is_quantized(precision):
        raise ModelError(
            f"random weights cannot be stored as {precision}: what is to be learned does not fit into so few bits",
            where="model.precision",
            allowed="fp32, bf16",
            fix="choose another strategy or precision for a model that is trained from scratch: strategy: full",
        )
    with as_model_error(source.spec), quiet_transformers():
        model: nn.Module = auto_class.from_config(config, dtype=_storage_dtype("fp32"))
    return model.to(_storage_dtype(precision))


def is_quantized(precision: Precision) -> bool:
    """Returns whether weights are stored in fewer bits than they are computed in."""
    return precision in ("nf4", "int8")


def fast_bf16(device: torch.device) -> bool:
    """Returns whether a device multiplies bf16 matrices faster than fp32 ones."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "mps"


def best_device() -> torch.device:
    """Returns the accelerator of this machine, or the CPU."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _storage_dtype(precision: Precision) -> torch.dtype:
    """Returns the dtype of whatever is not quantised; a quantised base follows the arithmetic of the device."""
    import torch

    if precision == "bf16" or (is_quantized(precision) and fast_bf16(best_device())):
        return torch.bfloat16
    return torch.float32


def _quantization(auto_class: Any, spec: ModelSpec, precision: Precision, config: Any) -> Any:
    """Returns bitsandbytes' settings: QLoRA's NF4 with double quantisation (arXiv:2305.14314), or LLM.int8()."""
    from transformers import BitsAndBytesConfig

    skip = _unquantized_modules(auto_class, spec, config)
    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_storage_dtype(precision),
        llm_int8_skip_modules=skip,
    )


def _unquantized_modules(auto_class: Any, spec: ModelSpec, config: Any) -> list[str]:
    """Returns the modules that must stay whole: output embeddings, and all that the checkpoint does not have.

    A new module has no weights to quantise: bitsandbytes would leave it unquantised and fail in its first forward.
    """
    with as_model_error(spec), quiet_transformers():
        model, report = auto_class.from_pretrained(
            spec.name,
            config=config,
            revision=spec.revision,
            trust_remote_code=False,
            use_safetensors=True,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # a head for another number of labels
        )
    output = model.get_output_embeddings()
    names = {name for name, module in model.named_modules() if output is not None and module is output}
    return sorted(names | {key.rpartition(".")[0] for key in _absent(report)})


def _absent(report: dict[str, Any]) -> list[str]:
    """Returns the parameters that the files do not have, or have in another shape."""
    return sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})


def _check_whole(spec: ModelSpec, model: Any, report: dict[str, Any]) -> None:
    """Raises when the files lack weights of the embedding or of a block: only a head or a pooler may be new."""
    from torch import nn

    embedding = model.get_input_embeddings()
    inside = tuple(
        f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList) or module is embedding
    )
    lost = [name for name in _absent(report) if name.startswith(inside)]
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


def _keep_gradients_after_evaluation(model: nn.Module) -> None:
    """Switches off bitsandbytes' repacking of 4-bit weights for inference on CPUs with AVX512-BF16.

    One evaluation without gradients repacks the weights, and from then on training gets no gradient
    through the layer.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' load report and progress bar away: new modules are reported by the run itself."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


@contextmanager
def as_model_error(spec: ModelSpec) -> Iterator[None]:
    """Turns what transformers raises for a model that cannot be had into one block."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"the model {spec.name!r} cannot be loaded: {first_line}",
            allowed="a local folder with config.json, weights and tokenizer, or a hub id that this machine can reach",
            fix="check the name; without a network, name a local folder (`make assets` fetches one into assets/minilm)",
        ) from error
