"""APOLLO and APOLLO-Mini keep adaptkit's contract, across changes of the space too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adaptkit_apollo import Apollo, ApolloMini, ApolloMiniOptions

from adaptkit.testing import parametrize_with_checks


def everything(base: Any, context: Any) -> int:
    """Returns how many parameters train."""
    return sum(parameter.numel() for parameter in base.parameters())


@parametrize_with_checks(
    [Apollo, ApolloMini(ApolloMiniOptions(name="apollo-mini", interval_steps=2))], trainable_parameters=everything
)
def test_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
