"""The fused LoRA layer on weights that bitsandbytes stores in 4 bits."""

from __future__ import annotations

import torch
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from torch import Tensor

from adaptkit.models.efficiency.fused_lora import FusedLora

__all__ = ["FusedLora4bit", "PeftLinear4bit"]


class FusedLora4bit(FusedLora, PeftLinear4bit):  # type: ignore[misc]
    """LoRA on `bitsandbytes.nn.Linear4bit`, while it trains; to answer, bitsandbytes has kernels of its own."""

    def is_plain(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Returns whether the weights are dequantised into the dtype of the arithmetic."""
        base = self.base_layer
        state = getattr(base.weight, "quant_state", None)
        return (
            torch.is_grad_enabled()
            and state is not None
            and state.dtype == dtype
            and tuple(state.shape) == (base.out_features, base.in_features)
            and not getattr(state, "packing_format_for_cpu", False)
            and (base.bias is None or not base.bias.requires_grad)
        )

    def output_dtype(self, x: Tensor, dtype: torch.dtype) -> torch.dtype:
        """Returns the dtype of the input, as bitsandbytes does."""
        return x.dtype
