"""adaptkit's own checks of a strategy, on tiny models of four architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adaptkit_ladder_side import LadderSide

from adaptkit import AdaptContext
from adaptkit.testing import parametrize_with_checks

BLOCKS = 2  # of every tiny model


def side_network(model: Any, context: AdaptContext) -> int:
    """Returns the entry, the rungs, the way back, and what is new: the head, and BERT's pooler in front of it."""
    hidden = model.config.hidden_size
    width = hidden // 8
    rung = 1 + hidden * width + 3 * 2 * width**2
    new = sum(model.get_parameter(name).numel() for name in context.new_parameters)
    return int(2 * hidden * width + BLOCKS * rung + new)


@parametrize_with_checks([LadderSide], trainable_parameters=side_network)
def test_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
