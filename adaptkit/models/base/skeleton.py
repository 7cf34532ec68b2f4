"""A base model without weights: every tensor has its shape and its precision, and stands on the meta device.

It is made from the config alone, so that what a run would need can be known before anything is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from adaptkit.models.base.source import ModelSource
    from adaptkit.models.precision import Numerics

# Of bitsandbytes: weights that share a scale, scales that share a scale of their own.
BLOCK, SCALES_BLOCK = 64, 256


def without_weights(source: ModelSource) -> ModelSource:
    """Returns a base of which `load_model` makes a skeleton."""
    return dataclasses.replace(source, skeleton=True)


def make_skeleton(auto_class: Any, source: ModelSource, config: Any, numerics: Numerics) -> tuple[nn.Module, list[str]]:
    """Makes what `load_model` makes, without weights.

    Args:
        auto_class: Of transformers.
        source: Which model.
        config: Its config, with the values of the task.
        numerics: Storage of the weights.

    Returns:
        The model, and the names of the parameters that the files of such a base do not have.

    Raises:
        ModelError: The config makes no such model.
    """
    from adaptkit.models.base.library import as_model_error, quiet_transformers

    with as_model_error(source.spec), quiet_transformers(), torch.device("meta"):
        model: Any = auto_class.from_config(config, dtype=numerics.storage_dtype)
    missing = [] if source.random else _absent(model, source)
    if numerics.quantized:
        _quantize(model, missing, numerics)
    if source.new_tokens is not None:
        from adaptkit.models.base.new_tokens import extend

        extend(model, source.new_tokens)
    return model, missing


def _absent(model: Any, source: ModelSource) -> list[str]:
    """Returns the parameters that the class which the files were saved from does not have.

    A base in front of a head is called by the prefix of its class in one of the two, and by nothing in the other.
    """
    saved = _saved_model(source)
    if saved is None:
        return []
    prefix = f"{model.base_model_prefix}."
    there = {name.removeprefix(prefix): tensor.shape for name, tensor in saved.state_dict().items()}
    tied = {id(parameter) for name, parameter in model.named_parameters() if name.removeprefix(prefix) in there}
    return sorted(
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if there.get(name.removeprefix(prefix)) != parameter.shape and id(parameter) not in tied
    )


def _saved_model(source: ModelSource) -> nn.Module | None:
    """Returns a skeleton of the class that the config names, or else of the bare model."""
    import transformers

    from adaptkit.models.base.configs import meta_model
    from adaptkit.models.base.library import quiet_transformers

    name = next(iter(source.config.architectures or ()), "")
    named = getattr(transformers, name, None)
    if named is None:
        return meta_model(source.config, source.spec)
    with quiet_transformers(), torch.device("meta"):
        model: nn.Module = named(source.config)
    return model


def _quantize(model: Any, missing: Iterable[str], numerics: Numerics) -> None:
    """Puts bitsandbytes' layers in place of linear ones, as loading does, with tensors of the right shapes."""
    import bitsandbytes as bnb
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    few = numerics.precision == "nf4"
    output = model.get_output_embeddings()
    whole = {name for name, module in model.named_modules() if output is not None and module is output}
    whole |= {name.rpartition(".")[0] for name in missing}
    settings = BitsAndBytesConfig(
        load_in_4bit=few,
        load_in_8bit=not few,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=numerics.storage_dtype,
    )
    replace_with_bnb_linear(model, sorted(whole | set(model._keep_in_fp32_modules or ())), settings)
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = few, not few
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            _pack_4bit(module, numerics.storage_dtype)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            _pack_8bit(module)
        elif isinstance(module, nn.LayerNorm):
            module.float()


def _pack_4bit(layer: Any, dtype: torch.dtype) -> None:
    """Gives a layer NF4 weights with double quantisation: 0.5 + 1/64 + 4/(64 x 256) bytes a weight."""
    import bitsandbytes as bnb

    shape = torch.Size((layer.out_features, layer.in_features))
    size = shape.numel()
    blocks = -(-size // BLOCK)

    def empty(*sizes: int, of: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*sizes, dtype=of, device="meta")

    scales = bnb.functional.QuantState(
        absmax=empty(-(-blocks // SCALES_BLOCK)), code=empty(256), blocksize=SCALES_BLOCK, dtype=torch.float32
    )
    state = bnb.functional.QuantState(
        absmax=empty(blocks, of=torch.uint8),
        shape=shape,
        code=empty(16),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=dtype,
        offset=empty(1).squeeze(0),
        state2=scales,
    )
    layer.weight = bnb.nn.Params4bit(
        empty(-(-size // 2), 1, of=torch.uint8),
        quant_state=state,
        quant_type="nf4",
        blocksize=BLOCK,
        compress_statistics=True,
        bnb_quantized=True,
        module=layer,
    )
    layer.quant_state = state
    layer.support_avx512bf16_for_cpu = False


def _pack_8bit(layer: Any) -> None:
    """Gives a layer int8 weights, with a scale a row."""
    import bitsandbytes as bnb

    weight = torch.empty(layer.out_features, layer.in_features, dtype=torch.int8, device="meta")
    scales = torch.empty(layer.out_features, device="meta")
    layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False, CB=weight, SCB=scales)
    layer.state.threshold = 0.0  # Which columns are outliers depends on values.
