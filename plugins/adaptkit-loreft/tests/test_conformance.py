"""adaptkit's own checks of a strategy, on tiny models of four architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adaptkit_loreft import LoReFT

from adaptkit import AdaptContext
from adaptkit.testing import parametrize_with_checks

R, BLOCKS = 4, 2  # the default, and those of every tiny model


def edits_and_head(model: Any, context: AdaptContext) -> int:
    """Returns R, W and b of every block, and what is new: the head, and BERT's pooler in front of it."""
    new = sum(model.get_parameter(name).numel() for name in context.new_parameters)
    return int(BLOCKS * (2 * R * model.config.hidden_size + R) + new)


@parametrize_with_checks([LoReFT], trainable_parameters=edits_and_head)
def test_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
