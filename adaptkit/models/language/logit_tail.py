"""What models do to logits behind their output layer: nothing, as a rule; some cap them, some scale them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from adaptkit.models.values import has_no_values

Tail: TypeAlias = Callable[[Tensor], Tensor]


class Probe:
    """Logits of many sizes, on both sides of 0, in the place of an output layer's own.

    Of small ones a cap would not show, of large ones an offset.

    Attributes:
        logits: What the model is given.
    """

    def __init__(self, like: Tensor) -> None:
        sizes = torch.logspace(-3, 2, like.shape[-1], device=like.device)
        sizes[1::2] *= -1
        self._original = sizes.to(like.dtype).expand(like.shape)
        self.logits = self._original.clone()

    def tail(self, config: Any, logits: Tensor) -> Tail | None:
        """Returns what a model has done to the probe; None: it is not known.

        Args:
            config: Of the model, or None.
            logits: What came out. Where they have no values, because a plan is made, the settings decide.
        """
        if logits is self.logits and not logits.is_inference() and logits._version == 0:
            return unchanged  # it was not written into either
        candidates = [*_meant_by(config), unchanged]
        if has_no_values(logits):
            return candidates[0]
        given = self._original
        return next((tail for tail in candidates if _equal(tail(given), logits, given.dtype)), None)


def unchanged(logits: Tensor) -> Tensor:
    """Returns logits as they are."""
    return logits


def _capped(cap: float, logits: Tensor) -> Tensor:
    """Gemma's soft cap."""
    return torch.tanh(logits / cap) * cap


def _times(factor: float, logits: Tensor) -> Tensor:
    """Cohere's scale."""
    return logits * factor


def _divided(divisor: float, logits: Tensor) -> Tensor:
    """Granite's scale."""
    return logits / divisor


def _meant_by(config: Any) -> list[Tail]:
    """Returns what the settings of a model may mean; one name means two things in transformers."""
    meanings: list[tuple[str, Callable[[float, Tensor], Tensor]]] = [
        ("final_logit_softcapping", _capped),
        ("logit_scale", _times),
        ("logits_scaling", _divided),
        ("logits_scaling", _times),
    ]
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    values = [(getattr(text, name, None), meaning) for name, meaning in meanings]
    return [partial(meaning, value) for value, meaning in values if isinstance(value, int | float) and value]


def _equal(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors are the same but for a rounding of `dtype`."""
    rounding = 2 * torch.finfo(dtype).eps
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=rounding, atol=0)
