"""LoRA on a plain linear layer in one autograd step, with fewer passes over the activations than PEFT's own forward.

PEFT writes the base's output, the update, the scaled update and their sum, each ``(batch, seq, out)``, and as
many gradients back. Here every product adds into the one before it. Values and gradients are the same up to the
rounding of sums; names, saving, merging and switching off stay PEFT's.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn


class FusedLoraLinear(PeftLinear):  # type: ignore[misc]
    """PEFT's layer in all but the plain case.

    Plain: one adapter, switched on, not merged, without dropout, bias and variants (DoRA), on a frozen
    `nn.Linear` of the input's dtype, outside autocast.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns ``(…, out)`` for an input of shape ``(…, in)``."""
        if args or kwargs or not self._is_plain(x):
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        (name,) = self.active_adapters
        base, down, up = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        output: Tensor = _LoraProduct.apply(x, base.weight, base.bias, down, up, self.scaling[name])  # type: ignore[no-untyped-call]
        return output

    def _is_plain(self, x: Tensor) -> bool:
        names, base = self.active_adapters, self.base_layer
        return (
            len(names) == 1
            and names[0] in self.lora_A
            and not (self.disable_adapters or self.merged or self.lora_variant)
            and isinstance(self.lora_dropout[names[0]], nn.Identity)
            and self.lora_B[names[0]].bias is None
            and not any(parameter.requires_grad for parameter in base.parameters())
            and not torch.is_autocast_enabled(x.device.type)
            and x.dtype == base.weight.dtype == self.lora_A[names[0]].weight.dtype
        )


def fuse_lora(model: nn.Module) -> None:
    """Makes PEFT's LoRA layers on plain linear layers fused ones, in place; they hold the same tensors."""
    for module in model.modules():
        if type(module) is PeftLinear and type(module.base_layer) is nn.Linear:
            module.__class__ = FusedLoraLinear


class _LoraProduct(torch.autograd.Function):
    """``x Wᵀ + b + s (x Aᵀ) Bᵀ`` with W and b frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ down.T
        output = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        output.addmm_(low, up.T, alpha=scaling)
        ctx.save_for_backward(rows, low, weight, down, up)
        ctx.scaling, ctx.shape = scaling, x.shape
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        rows, low, weight, down, up = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, weight.shape[0])
        low_gradient = (gradient @ up).mul_(ctx.scaling)
        input_gradient = None
        if ctx.needs_input_grad[0]:
            input_gradient = (gradient @ weight).addmm_(low_gradient, down).view(ctx.shape)
        return input_gradient, None, None, low_gradient.T @ rows, (gradient.T @ low).mul_(ctx.scaling), None
