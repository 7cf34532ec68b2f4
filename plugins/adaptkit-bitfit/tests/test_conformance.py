"""BitFit keeps adaptkit's contract, with all biases and with the paper's subset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adaptkit_bitfit import BitFit, BitFitOptions

from adaptkit.testing import parametrize_with_checks


def biases_and_head(base: Any, context: Any) -> int:
    """Returns how many parameters train with all biases."""
    head = tuple(f"{name}." for name in context.head_modules)
    return sum(
        parameter.numel()
        for name, parameter in base.named_parameters()
        if name.endswith("bias") or name.startswith(head) or name in context.new_parameters
    )


@parametrize_with_checks([BitFit], trainable_parameters=biases_and_head)
def test_keeps_the_contract(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks([BitFit(BitFitOptions(name="bitfit", biases="query-and-middle"))])
def test_keeps_the_contract_with_a_subset(check: Callable[[], None]) -> None:
    check()
