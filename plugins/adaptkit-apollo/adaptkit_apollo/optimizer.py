"""AdamW whose moments live in a random space of low rank (APOLLO, Zhu et al. 2024, arXiv:2412.05270)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.optim import Optimizer

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class AuxiliarySpace:
    """Where the moments of a matrix live, and how its gradient is scaled by them.

    Attributes:
        rank: Dimensions of the space; None: a quarter of the matrix's smaller side.
        scaling: One factor a channel (of the larger side), or one a matrix.
        scale: On every factor; None: sqrt(smaller side / rank), by which a step becomes as long as one of AdamW.
        interval: Steps until the space is drawn anew.
        growth_limit: How many times as long as the last one a step may be, before the learning rate; None: any.
        seed: Of the run.
    """

    rank: int | None
    scaling: Literal["channel", "tensor"]
    scale: float | None
    interval: int
    growth_limit: float | None
    seed: int

    def rank_of(self, matrix: Tensor) -> int:
        """Returns the dimensions of the space for a matrix."""
        return self.rank or max(1, min(matrix.shape) // 4)

    def saves(self, parameter: Tensor) -> bool:
        """Whether moments in the space are smaller than those in full."""
        return parameter.ndim == 2 and self.rank_of(parameter) < min(parameter.shape)

    def project(self, gradient: Tensor, index: int, step: int) -> Tensor:
        """Returns a gradient with its smaller side shrunk to the rank; its length is kept on average.

        The projection is a function of seed, index and step, so that it is stored nowhere.

        Args:
            gradient: ``(rows, columns)``.
            index: Of the parameter in the optimizer.
            step: Steps that the parameter has taken.
        """
        rows, columns = gradient.shape
        rank = self.rank_of(gradient)
        digest = hashlib.sha256(f"{self.seed}/{index}/{step // self.interval}".encode()).digest()
        generator = torch.Generator(gradient.device).manual_seed(int.from_bytes(digest[:7], "big"))
        shape = (min(rows, columns), rank)
        projection = torch.randn(shape, generator=generator, device=gradient.device, dtype=gradient.dtype)
        projection /= math.sqrt(rank)
        return gradient @ projection if rows >= columns else projection.T @ gradient

    def scaled(self, gradient: Tensor, projected: Tensor, direction: Tensor, eps: float) -> Tensor:
        """Returns the gradient, each channel (or all of it) stretched as AdamW stretches its projection.

        Args:
            gradient: ``(rows, columns)``.
            projected: The gradient in the space.
            direction: AdamW's step in the space.
            eps: Added to the length of the projection: a channel may have moments and no gradient in this step.
        """
        rows, columns = gradient.shape
        axes = (0, 1) if self.scaling == "tensor" else (1 if rows >= columns else 0,)
        length, unscaled = (vector_norm(tensor, dim=axes, keepdim=True) for tensor in (direction, projected))
        scale = self.scale or math.sqrt(min(rows, columns) / self.rank_of(gradient))
        factor: Tensor = scale * length / (unscaled + eps)
        return gradient * factor

    def limit(self, step: Tensor, last: Tensor) -> Tensor:
        """Shortens a step that has grown too much, in place (the norm-growth limiter of Fira, arXiv:2410.01623).

        Args:
            step: ``(rows, columns)``.
            last: Length of the last step, ``()``; 0: there was none. It becomes that of this one.
        """
        length = vector_norm(step)
        if self.growth_limit is not None:
            most = torch.where(last > 0, self.growth_limit * last, length)
            step *= (most / length.clamp_min(TINY)).clamp_max(1.0)
            length = torch.minimum(length, most)
        last.copy_(length)
        return step


class ApolloAdamW(Optimizer):
    """AdamW, and in groups with ``projected`` APOLLO.

    Its state holds plain numbers and tensors: for a projected matrix two moments of ``(larger side, rank)`` and one
    length.

    Args:
        groups: With ``lr`` and ``weight_decay``; every parameter of a projected group is a matrix that `space` saves.
        space: Of the projected groups.
        betas: Decay of the moments.
        eps: Added to the root of the second moment.
    """

    def __init__(
        self, groups: list[dict[str, Any]], space: AuxiliarySpace, betas: tuple[float, float], eps: float = 1e-8
    ) -> None:
        super().__init__(groups, {"weight_decay": 0.0, "projected": False, "betas": betas, "eps": eps})
        self._space = space

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes a step with every parameter that has a gradient.

        Args:
            closure: Computes the loss and its gradient again.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        indexed = enumerate((parameter, group) for group in self.param_groups for parameter in group["params"])
        for index, (parameter, group) in indexed:
            if parameter.grad is not None:
                direction = self._direction(parameter, parameter.grad, group, index)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
        return loss

    def _direction(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], index: int) -> Tensor:
        """Returns what is subtracted from a parameter, before the learning rate."""
        state = self.state[parameter]
        if not group["projected"]:
            return _adam(state, gradient, group)
        projected = self._space.project(gradient, index, state.get("step", 0))
        step = self._space.scaled(gradient, projected, _adam(state, projected, group), group["eps"])
        return self._space.limit(step, state.setdefault("length", gradient.new_zeros(())))


def _adam(state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> Tensor:
    """Returns Adam's direction (arXiv:1412.6980), and takes the gradient into the moments."""
    if "step" not in state:
        state |= {"step": 0, "exp_avg": torch.zeros_like(gradient), "exp_avg_sq": torch.zeros_like(gradient)}
    state["step"] += 1
    beta1, beta2 = group["betas"]
    first, second = state["exp_avg"], state["exp_avg_sq"]
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = (second / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
    direction: Tensor = first / root / (1 - beta1 ** state["step"])
    return direction
