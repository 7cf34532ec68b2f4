"""Two thin fronts of the checks: a function that runs them, and a pytest decorator."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptkit.errors import AdaptkitError, did_you_mean
from adaptkit.strategy import Strategy
from adaptkit.testing.bases import BASES
from adaptkit.testing.check import Check, NotApplicable, Outcome, State
from adaptkit.testing.strategy_checks import STRATEGY_CHECKS
from adaptkit.testing.subject import Subject, subjects

if TYPE_CHECKING:
    import pytest
    from torch import nn

    from adaptkit.strategy import AdaptContext

AnyStrategy = type[Strategy[Any]] | Strategy[Any]


def check_strategy(
    strategy: AnyStrategy,
    *,
    expected_failures: Mapping[str, str] | None = None,
    trainable_parameters: Callable[[nn.Module, AdaptContext], int] | None = None,
) -> list[Outcome]:
    """Runs every check on a strategy, on each tiny base that it serves.

    Args:
        strategy: A class, or an instance with the options to be used.
        expected_failures: Name of a check, or ``check on base``, to the reason why it fails; it must fail then. Those
            that the strategy itself declares as ``known_failures`` are expected too.
        trainable_parameters: The closed form of how many parameters train, of the base with its head and the context.

    Returns:
        What came of each check.

    Raises:
        AssertionError: Some failed; the message has a line for each.
    """
    outcomes = list(
        run_checks(strategy, expected_failures=expected_failures, trainable_parameters=trainable_parameters)
    )
    bad = [outcome for outcome in outcomes if not outcome.good]
    if bad:
        raise AssertionError("\n".join([f"{len(bad)} of {len(outcomes)} checks failed:", *map(str, bad)]))
    return outcomes


def parametrize_with_checks(
    strategies: Sequence[AnyStrategy],
    *,
    expected_failures: Mapping[str, str] | None = None,
    trainable_parameters: Callable[[nn.Module, AdaptContext], int] | None = None,
) -> pytest.MarkDecorator:
    """Makes a test of every check: ``@parametrize_with_checks([MyStrategy])`` above ``def test_x(check): check()``.

    A check that does not apply is skipped with its reason; one that is expected to fail must fail.

    Args:
        strategies: Classes, or instances with the options to be used.
        expected_failures: As for `check_strategy`.
        trainable_parameters: As for `check_strategy`.
    """
    import pytest

    for strategy in strategies:
        _check_names(strategy, expected_failures)

    def case(one: Check, subject: Subject) -> Any:
        reason = _expected(expected_failures, one, subject)
        marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
        return pytest.param(_Call(one, subject), id=f"{one.name}-{_label(one, subject)}", marks=marks)

    cases = [case(*pair) for strategy in strategies for pair in _pairs(strategy, trainable_parameters)]
    return pytest.mark.parametrize("check", cases)


def run_checks(
    strategy: AnyStrategy,
    *,
    expected_failures: Mapping[str, str] | None = None,
    trainable_parameters: Callable[[nn.Module, AdaptContext], int] | None = None,
) -> Iterator[Outcome]:
    """Yields what comes of each check of a strategy, as it comes; the arguments are those of `check_strategy`."""
    _check_names(strategy, expected_failures)
    for one, subject in _pairs(strategy, trainable_parameters):
        yield _outcome(one, subject, _expected(expected_failures, one, subject))


def _pairs(
    strategy: AnyStrategy, trainable_parameters: Callable[[nn.Module, AdaptContext], int] | None
) -> Iterable[tuple[Check, Subject]]:
    everywhere = list(subjects(strategy, trainable_parameters))
    for one in STRATEGY_CHECKS:
        yield from ((one, subject) for subject in (everywhere[:1] if one.once else everywhere))


def _check_names(strategy: AnyStrategy, failures: Mapping[str, str] | None) -> None:
    """Raises when a failure is expected of a check or a base that there is not."""
    names = {one.name for one in STRATEGY_CHECKS}
    allowed = names | {f"{name} on {base}" for name in names for base in BASES}
    for name in {**strategy.known_failures, **(failures or {})}:
        if name not in allowed:
            hint = did_you_mean(name, allowed) or f"the checks are {', '.join(sorted(names))}"
            raise ValueError(f"there is no check {name!r} to be expected to fail ({hint})")


def _label(one: Check, subject: Subject) -> str:
    return subject.strategy.name if one.once else str(subject)


def _expected(failures: Mapping[str, str] | None, one: Check, subject: Subject) -> str:
    """Returns why a check is expected to fail; empty: it is not."""
    known = {**subject.strategy.known_failures, **(failures or {})}
    return known.get(one.name) or known.get(f"{one.name} on {subject.base_name}") or ""


def _outcome(one: Check, subject: Subject, expected: str) -> Outcome:
    started = time.monotonic()
    state: State
    try:
        one(subject)
    except NotApplicable as reason:
        state, why = "not applicable", str(reason)
    except Exception as error:  # Of every kind: what the strategy raises is what is to be told.
        state, why = ("expected failure", expected) if expected else ("failed", describe(error))
    else:
        state, why = ("unexpected pass", f"was expected to fail: {expected}") if expected else ("passed", "")
    base = "" if one.once else subject.base_name
    return Outcome(one.name, one.summary, subject.strategy.name, base, state, why, time.monotonic() - started)


def describe(error: Exception) -> str:
    """Returns what a check raised, in one line."""
    if isinstance(error, AdaptkitError):
        return f"{type(error).__name__}: {error.problems[0].found}"
    text = " ".join(str(error).split())
    return text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"


class _Call:
    """A check with its subject, to be called by a test."""

    def __init__(self, one: Check, subject: Subject) -> None:
        self._check, self._subject = one, subject

    def __call__(self) -> None:
        import pytest

        try:
            self._check(self._subject)
        except NotApplicable as reason:
            pytest.skip(str(reason))

    def __repr__(self) -> str:
        return f"{self._check.name} of {self._subject}"
