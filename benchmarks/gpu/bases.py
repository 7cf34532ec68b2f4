"""Bases with random weights, made on the device module by module: no file is read, no copy is held.

Those in 4 bits are made as loading makes them: NF4, double quantisation, all linear layers but the output layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.gpu.shapes import Shape, make_config

STD = 0.02
AUTO_CLASSES = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}


def random_base(shape: Shape, device: torch.device, *, nf4: bool, dtype: torch.dtype) -> nn.Module:
    """Returns a model of a shape whose weights are drawn from a normal distribution, its norms 1.

    Args:
        shape: Of the model.
        device: Where it is made.
        nf4: Whether its linear layers are stored in 4 bits.
        dtype: Of all that is not.
    """
    import transformers

    config = make_config(shape)
    auto_class = getattr(transformers, AUTO_CLASSES[shape.kind])
    if not nf4:
        with torch.device(device):
            whole: nn.Module = auto_class.from_config(config, dtype=dtype, attn_implementation="sdpa")
        for module in whole.modules():
            _fill(module)
        whole.tie_weights()  # type: ignore[operator]
        return whole
    with torch.device("meta"):
        model: Any = auto_class.from_config(config, dtype=dtype, attn_implementation="sdpa")
    _quantize_linears(model, device, dtype)
    for module in model.modules():
        _materialize(module, device, config)
        _fill(module)
    model.tie_weights()
    _say_quantized(model, dtype)
    return model  # type: ignore[no-any-return]


def _say_quantized(model: Any, dtype: torch.dtype) -> None:
    """Leaves on a model what transformers leaves when it has loaded one in 4 bits; PEFT and Trainer ask for it."""
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model.hf_quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=False)
    model.config.quantization_config = settings
    model.is_loaded_in_4bit, model.is_quantized = True, True
    model.quantization_method = settings.quant_method


def _quantize_linears(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Replaces every linear layer but the output layer by one of random NF4 weights."""
    import bitsandbytes

    output = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or module is output:
            continue
        layer: Any = bitsandbytes.nn.Linear4bit(
            module.in_features, module.out_features, bias=module.bias is not None, compute_dtype=dtype, device="meta"
        )
        weights = STD * torch.randn(module.out_features, module.in_features, dtype=dtype, device=device)
        packed = bitsandbytes.nn.Params4bit(
            weights, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
        )
        layer.weight = packed.to(device)
        model.set_submodule(name, layer)


def _materialize(module: nn.Module, device: torch.device, config: Any) -> None:
    """Gives what is on the meta device room on a device; what is computed from the config is computed."""
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.is_meta:
            empty = torch.empty_like(parameter, device=device)
            setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
    if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
        remade = type(module)(config)
        for name, buffer in remade.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
        for name in ("original_inv_freq",):
            if hasattr(remade, name):
                setattr(module, name, getattr(remade, name).to(device))


def _fill(module: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_floating_point():
                continue
            if parameter.ndim > 1:
                parameter.normal_(std=STD)
            else:
                parameter.fill_(0.0 if name == "bias" else 1.0)
