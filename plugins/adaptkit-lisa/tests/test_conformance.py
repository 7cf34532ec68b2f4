"""LISA keeps adaptkit's contract while blocks come and go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adaptkit_lisa import Lisa, LisaOptions

from adaptkit.testing import parametrize_with_checks


def everything(base: Any, context: Any) -> int:
    """Returns how many parameters train in time."""
    return sum(parameter.numel() for parameter in base.parameters())


@parametrize_with_checks(
    [Lisa(LisaOptions(name="lisa", activated_layers=1, interval_steps=2))], trainable_parameters=everything
)
def test_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
