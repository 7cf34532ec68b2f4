"""Which arithmetic a run uses and how its base is stored, where the recipe leaves it open."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptkit.models.loading import best_device, fast_bf16, is_quantized

if TYPE_CHECKING:
    import torch

    from adaptkit.recipe import Precision, Recipe
    from adaptkit.strategy import Strategy


@dataclass(frozen=True)
class Numerics:
    """How numbers are stored and computed in a run.

    Attributes:
        device: Where the model is.
        precision: Storage of the base weights; what trains is always fp32.
        bf16: Whether matrix products are computed in bf16.
    """

    device: torch.device
    precision: Precision
    bf16: bool

    def autocast(self) -> AbstractContextManager[Any]:
        """Returns the context of a forward pass."""
        import torch

        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)


def choose_numerics(recipe: Recipe, strategy: Strategy[Any]) -> Numerics:
    """Fills in what ``model.precision`` and ``training.compute`` leave open.

    bf16 arithmetic where the device is fast at it. A frozen base is stored as it is computed; a base that
    trains stays in fp32, because small updates vanish in bf16.
    """
    device = best_device()
    compute = recipe.training.compute
    bf16 = fast_bf16(device) if compute == "auto" else compute == "bf16"
    precision = strategy.base_precision() or recipe.model.precision
    if precision is None:
        precision = "bf16" if bf16 and not strategy.capabilities.changes_base else "fp32"
    mixed = precision == "bf16" or (is_quantized(precision) and fast_bf16(device))
    return Numerics(device, precision, bf16 or mixed)
