"""Which arithmetic a run uses and how its base is stored, where the recipe leaves it open."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

    @property
    def quantized(self) -> bool:
        """Whether the base's matrices are stored in fewer bits than they are computed in."""
        return self.precision in ("nf4", "int8")

    @property
    def storage_dtype(self) -> torch.dtype:
        """Of all that is not quantised; around quantised matrices it is what they are computed in."""
        import torch

        return torch.bfloat16 if self.precision == "bf16" or (self.quantized and self.bf16) else torch.float32

    def autocast(self) -> AbstractContextManager[Any]:
        """Returns the context of a forward pass."""
        import torch

        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)


def choose_numerics(recipe: Recipe, strategy: Strategy[Any], device: torch.device | None = None) -> Numerics:
    """Fills in what ``model.precision`` and ``training.compute`` leave open.

    bf16 arithmetic where the device is fast at it, or where the base is stored so. A frozen base is stored as it is
    computed; a base that trains stays in fp32, because small updates vanish in bf16.

    Args:
        recipe: May leave them open.
        strategy: May need a precision.
        device: Where the model will be; None: the best of this machine.
    """
    device = device or best_device()
    compute = recipe.training.compute
    bf16 = fast_bf16(device) if compute == "auto" else compute == "bf16"
    precision = strategy.base_precision() or recipe.model.precision
    if precision is None:
        precision = "bf16" if bf16 and not strategy.capabilities.changes_base else "fp32"
    return Numerics(device, precision, bf16 or precision == "bf16")


def settle(recipe: Recipe, strategy: Strategy[Any]) -> Recipe:
    """Returns a recipe that says what this machine chose, so that the run is resumed and loaded as it ran."""
    numerics = choose_numerics(recipe, strategy)
    model = recipe.model.model_copy(update={"precision": numerics.precision})
    training = recipe.training.model_copy(update={"compute": "bf16" if numerics.bf16 else "fp32"})
    return recipe.model_copy(update={"model": model, "training": training})


def fast_bf16(device: torch.device) -> bool:
    """Returns whether a device multiplies bf16 matrices faster than fp32 ones."""
    import torch

    if device.type == "cuda":
        # One that is not here, for which only a plan is made, is taken for one of today.
        return not torch.cuda.is_available() or bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "mps"


def best_device() -> torch.device:
    """Returns the accelerator of this machine, or the CPU."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
