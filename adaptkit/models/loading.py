"""Loading a base model in the precision that was asked for, and knowing which one it was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import nn

    from adaptkit.recipe import ModelSpec, Precision

# Whatever decides what a base computes: weights, configs, tokenizer, the pooling of a sentence encoder.
BASE_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "1_Pooling/config.json")


def load_config(spec: ModelSpec) -> Any:
    """Returns the transformers config of a base.

    Raises:
        ModelError: There is no such model, here or on the hub.
    """
    from transformers import AutoConfig

    check_local(spec.name)
    with _as_model_error(spec):
        return AutoConfig.from_pretrained(spec.name, revision=spec.revision, trust_remote_code=False)


def load_tokenizer(spec: ModelSpec) -> Any:
    """Returns the base's fast tokenizer, with a padding token.

    Raises:
        ModelError: The model has no tokenizer, or one that can neither pad nor end a text.
    """
    from transformers import AutoTokenizer

    with _as_model_error(spec):
        tokenizer = AutoTokenizer.from_pretrained(spec.name, revision=spec.revision, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has neither a padding nor an end token",
                where=spec.name,
                fix="set pad_token in the tokenizer's files",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(auto_class: Any, spec: ModelSpec, precision: Precision, **options: Any) -> tuple[nn.Module, list[str]]:
    """Loads a pretrained model through one of transformers' Auto classes.

    Args:
        auto_class: ``AutoModel``, ``AutoModelForSequenceClassification`` …
        spec: Which model.
        precision: Storage of the weights. New modules and output embeddings are never quantised.
        options: For ``from_pretrained`` (``num_labels``, ``config`` …).

    Returns:
        The model, and the names of the parameters that the checkpoint does not have.

    Raises:
        ModelError: It cannot be loaded.
    """
    quantized = (
        {"quantization_config": _quantization(auto_class, spec, precision, options)} if is_quantized(precision) else {}
    )
    with _as_model_error(spec), _quiet_transformers():
        model, report = auto_class.from_pretrained(
            spec.name,
            revision=spec.revision,
            trust_remote_code=False,
            use_safetensors=True,  # a pickle could run code
            dtype=_storage_dtype(precision),
            output_loading_info=True,
            **quantized,
            **options,
        )
    missing = sorted(report["missing_keys"])
    _check_whole(spec, model, missing)
    _keep_gradients_after_evaluation(model)
    return model, missing


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


def base_fingerprint(spec: ModelSpec, config: Any) -> str:
    """Returns what identifies a base: sha256 of the files of a folder, the commit of a hub model."""
    folder = Path(spec.name)
    if not folder.is_dir():
        return f"commit:{getattr(config, '_commit_hash', None) or spec.revision or 'unknown'}"
    digest = hashlib.sha256()
    for path in sorted(path for pattern in BASE_FILES for path in folder.glob(pattern)):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def _storage_dtype(precision: Precision) -> torch.dtype:
    """Returns the dtype of whatever is not quantised; a quantised base follows the arithmetic of the device."""
    import torch

    if precision == "bf16" or (is_quantized(precision) and fast_bf16(best_device())):
        return torch.bfloat16
    return torch.float32


def _quantization(auto_class: Any, spec: ModelSpec, precision: Precision, options: dict[str, Any]) -> Any:
    """Returns bitsandbytes' settings: QLoRA's NF4 with double quantisation (arXiv:2305.14314), or LLM.int8()."""
    from transformers import BitsAndBytesConfig

    skip = _unquantized_modules(auto_class, spec, options)
    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_storage_dtype(precision),
        llm_int8_skip_modules=skip,
    )


def _unquantized_modules(auto_class: Any, spec: ModelSpec, options: dict[str, Any]) -> list[str]:
    """Returns the modules that must stay whole: output embeddings, and all that the checkpoint does not have.

    A new module has no weights to quantise: bitsandbytes would leave it unquantised and fail in its first forward.
    """
    with _as_model_error(spec), _quiet_transformers():
        model, report = auto_class.from_pretrained(
            spec.name,
            revision=spec.revision,
            trust_remote_code=False,
            use_safetensors=True,
            device_map="meta",
            output_loading_info=True,
            **options,
        )
    output = model.get_output_embeddings()
    names = {name for name, module in model.named_modules() if output is not None and module is output}
    return sorted(names | {key.rpartition(".")[0] for key in report["missing_keys"]})


def _check_whole(spec: ModelSpec, model: Any, missing: list[str]) -> None:
    """Raises when the files lack weights of the embedding or of a block: only a head or a pooler may be new."""
    from torch import nn

    embedding = model.get_input_embeddings()
    inside = tuple(
        f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList) or module is embedding
    )
    lost = [name for name in missing if name.startswith(inside)]
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
def _quiet_transformers() -> Iterator[None]:
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


def check_local(name: str) -> None:
    """Raises when a name that is meant as a folder names none; it is when it looks like a path or its parent exists.

    Raises:
        ModelError: With the nearest folder that exists.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError("the folder holds no model", where=name, allowed="a folder with config.json and weights")
        return
    looks_local = path.is_absolute() or name.startswith((".", "~")) or path.parent.is_dir() or name.count("/") > 1
    if "/" in name and looks_local:
        siblings = [str(path.parent / entry) for entry in os.listdir(path.parent)] if path.parent.is_dir() else []
        raise ModelError(
            f"there is no folder {name!r}",
            allowed="a local folder, or the id of a model on the Hugging Face hub",
            fix=did_you_mean(name, siblings) or "`make assets` fetches the models of the recipes into assets/",
        )


@contextmanager
def _as_model_error(spec: ModelSpec) -> Iterator[None]:
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
