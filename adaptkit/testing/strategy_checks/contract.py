"""What can be seen without a model: names, options, imports."""

from __future__ import annotations

from typing import get_args

from adaptkit.contracts import contract_faults
from adaptkit.recipe import Precision
from adaptkit.strategy import Strategy
from adaptkit.testing.check import check
from adaptkit.testing.options import assert_imports_no_torch, assert_strict_options
from adaptkit.testing.subject import Subject


@check(once=True)
def check_contract(subject: Subject) -> None:
    """Name, docstring, capabilities and what is asked before a model is loaded are as the contract wants them."""
    cls, made = subject.strategy, subject.make()
    faults = contract_faults("strategy", cls.name, cls)
    assert not faults, "; ".join(faults)
    assert (cls.__doc__ or "").strip(), "the class has no docstring; its first line is what `adaptkit strategies` says"
    for family in subject.capabilities.families:
        rate = made.learning_rate(family)
        assert rate > 0, f"learning_rate({family!r}) is {rate}"
    precision = made.base_precision()
    assert precision is None or precision in get_args(Precision), f"base_precision() is {precision!r}"
    for capability, method in (("mergeable", "merge"), ("can_disable", "disabled")):
        declared, written = (
            getattr(subject.capabilities, capability),
            getattr(cls, method) is not getattr(Strategy, method),
        )
        assert written or not declared, f"{capability} is declared, but there is no {method}()"


@check(once=True)
def check_options(subject: Subject) -> None:
    """Options refuse unknown keys, survive JSON, and are described."""
    assert_strict_options(subject.make().options)


@check(once=True)
def check_import(subject: Subject) -> None:
    """The module of the strategy imports no torch, so that names and options are known at once."""
    assert_imports_no_torch(subject.strategy.__module__)
