"""LoRA on a frozen linear layer, plain or in 4 bits, with fewer passes over the activations than PEFT's own forward.

PEFT writes the base's output, the update, the scaled update and their sum, each ``(batch, seq, out)``, and as
many gradients back. Here every product adds into the one before it. Values and gradients are the same up to the
rounding of sums; names, saving, merging and switching off stay PEFT's.

All that the backward pass needs is saved before the base's product is computed, and nothing after it. So where a block
is recomputed, the product of its last layer is not: nothing that is saved depends on it.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn


class FusedLora:
    """PEFT's layer in all but the plain case.

    Plain: one adapter, switched on, not merged, without bias and variants (DoRA), on a frozen layer whose weights are
    used as they are stored: in the dtype of the arithmetic, which autocast or else the input gives.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns ``(…, out)`` for an input of shape ``(…, in)``."""
        layer: Any = self
        dtype = compute_dtype(x)
        if args or kwargs or not (_has_one_plain_adapter(layer) and self.is_plain(x, dtype)):
            result: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return result
        (name,) = layer.active_adapters
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        low, rows = _low_rank(x, down, layer.lora_dropout[name], dtype)
        output: Tensor = _Up.apply(low, rows, up, layer.base_layer, layer.scaling[name])  # type: ignore[no-untyped-call]
        return output.view(*x.shape[:-1], -1).to(self.output_dtype(x, dtype))

    def is_plain(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Returns whether the base can be multiplied by as it is."""
        raise NotImplementedError

    def output_dtype(self, x: Tensor, dtype: torch.dtype) -> torch.dtype:
        """Returns the dtype that PEFT's layer would return."""
        return dtype


class FusedLoraLinear(FusedLora, PeftLinear):  # type: ignore[misc]
    """LoRA on `nn.Linear`."""

    def is_plain(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Returns whether the weights are stored in the dtype of the arithmetic."""
        base = self.base_layer
        return not any(parameter.requires_grad for parameter in base.parameters()) and base.weight.dtype == dtype


def fuse_lora(model: nn.Module) -> None:
    """Makes PEFT's LoRA layers on linear layers fused ones, in place; they hold the same tensors."""
    quantized = _quantized_classes()
    for module in model.modules():
        if type(module) is PeftLinear and type(module.base_layer) is nn.Linear:
            module.__class__ = FusedLoraLinear
        elif quantized and type(module) is quantized[0]:
            module.__class__ = quantized[1]


def compute_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype in which a linear layer multiplies an input."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _has_one_plain_adapter(layer: Any) -> bool:
    names = layer.active_adapters
    return (
        len(names) == 1
        and names[0] in layer.lora_A
        and not (layer.disable_adapters or layer.merged or layer.lora_variant)
        and layer.lora_B[names[0]].bias is None
    )


def _low_rank(x: Tensor, down: Tensor, dropout: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns ``dropout(x) Aᵀ`` and x itself, as rows in the dtype of the arithmetic."""
    if isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0:
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        return dropout(rows) @ down.to(dtype).T, rows
    low, rows = _Down.apply(x, down, dtype)  # type: ignore[no-untyped-call]
    return low, rows


def _quantized_classes() -> tuple[type, type] | None:
    """Returns PEFT's LoRA layer on 4-bit weights and the fused one, where bitsandbytes is installed."""
    try:
        from adaptkit.models.efficiency.fused_lora_4bit import FusedLora4bit, PeftLinear4bit
    except ImportError:
        return None
    return PeftLinear4bit, FusedLora4bit


def _matrix(base: nn.Module, dtype: torch.dtype) -> Tensor:
    """Returns the weights ``(out, in)`` of a linear layer."""
    weight: Any = base.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        plain: Tensor = weight
        return plain
    from bitsandbytes.functional import dequantize_4bit

    whole: Tensor = dequantize_4bit(weight.data, state)
    return whole.to(dtype)


class _Down(torch.autograd.Function):
    """``x Aᵀ``, and x itself as rows in the dtype of the arithmetic; saves all that the layer's backward needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        rows = x.reshape(-1, x.shape[-1]).to(dtype)
        ctx.save_for_backward(rows, down)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        if not ctx.needs_input_grad[0]:
            ctx.mark_non_differentiable(rows)
        return rows @ down.to(dtype).T, rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None]:
        low_gradient, gradient = gradients
        rows, down = ctx.saved_tensors
        input_gradient = None
        if ctx.needs_input_grad[0]:
            # The gradient through the base is `_Up`'s own new tensor: adding into it saves a pass over the activations.
            input_gradient = gradient.addmm_(low_gradient, down.to(rows.dtype)).view(ctx.shape).to(ctx.dtype)
        return input_gradient, (low_gradient.T @ rows).to(down.dtype), None


class _Up(torch.autograd.Function):
    """``x Wᵀ + b + s (x Aᵀ) Bᵀ`` with W and b frozen.

    What its backward pass needs is kept beside autograd's saved tensors: these would have to be recomputed after the
    product. The low-rank activations are the only ones, and small.
    """

    @staticmethod
    def forward(ctx: Any, low: Tensor, rows: Tensor, up: Tensor, base: nn.Module, scaling: float) -> Tensor:
        weight, bias = _matrix(base, rows.dtype), getattr(base, "bias", None)
        output = rows @ weight.T if bias is None else torch.addmm(bias.to(rows.dtype), rows, weight.T)
        output.addmm_(low, up.to(rows.dtype).T, alpha=scaling)
        ctx.low, ctx.up, ctx.base, ctx.scaling = low.detach(), up, base, scaling
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None, None]:
        low, up = ctx.low, ctx.up
        gradient = gradients[0].to(low.dtype)
        low_gradient = (gradient @ up.to(low.dtype)).mul_(ctx.scaling)
        up_gradient = (gradient.T @ low).mul_(ctx.scaling).to(up.dtype)
        rows_gradient = gradient @ _matrix(ctx.base, low.dtype) if ctx.needs_input_grad[1] else None
        return low_gradient, rows_gradient, up_gradient, None, None
