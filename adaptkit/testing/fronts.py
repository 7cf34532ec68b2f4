"""The fronts of the checks: functions that run them, and pytest decorators."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from adaptkit.errors import AdaptkitError, did_you_mean
from adaptkit.format import Format
from adaptkit.strategy import Strategy
from adaptkit.task import Task
from adaptkit.testing.bases import BASES
from adaptkit.testing.check import Check, NotApplicable, Outcome, State
from adaptkit.testing.format_checks import FORMAT_CHECKS, FormatSubject
from adaptkit.testing.strategy_checks import STRATEGY_CHECKS
from adaptkit.testing.subject import subjects
from adaptkit.testing.task_checks import TASK_CHECKS
from adaptkit.testing.task_subject import Rows, task_subjects

if TYPE_CHECKING:
    import pytest
    from torch import nn

    from adaptkit.strategy import AdaptContext

AnyStrategy: TypeAlias = type[Strategy[Any]] | Strategy[Any]
AnyTask: TypeAlias = type[Task[Any]] | Task[Any]
Failures: TypeAlias = Mapping[str, str] | None


class AnySubject(Protocol):
    """What checks are about."""

    @property
    def name(self) -> str:
        """Of the strategy, task or format."""

    @property
    def base_name(self) -> str:
        """Of the tiny base."""

    @property
    def known_failures(self) -> Mapping[str, str]:
        """What it says it cannot pass."""


Pair: TypeAlias = tuple[Check, AnySubject]


def check_strategy(
    strategy: AnyStrategy,
    *,
    expected_failures: Failures = None,
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
        ValueError: There is no check of the name that is expected to fail.
    """
    return _all_good(
        run_checks(strategy, expected_failures=expected_failures, trainable_parameters=trainable_parameters)
    )


def check_task(
    task: AnyTask, rows: Rows, *, bad_rows: Rows = (), questions: Rows = (), expected_failures: Failures = None
) -> list[Outcome]:
    """Runs every check on a task, on each tiny base that it serves.

    Args:
        task: A class, or an instance with the options to be used.
        rows: Labelled rows that it can learn, by its roles; six at least, of different lengths.
        bad_rows: Rows that it must refuse.
        questions: Rows that ask for a prediction; none: the labelled ones without their labels.
        expected_failures: As for `check_strategy`.

    Returns:
        What came of each check.

    Raises:
        AssertionError: As `check_strategy`.
        ValueError: As `check_strategy`.
    """
    everywhere = task_subjects(task, rows, bad_rows=bad_rows, questions=questions)
    return _all_good(_run(_pairs(TASK_CHECKS, everywhere), expected_failures))


def check_format(cls: type[Format], rows: Rows, *, expected_failures: Failures = None) -> list[Outcome]:
    """Runs every check on a dataset format.

    Args:
        cls: The format.
        rows: Labelled rows, by its columns.
        expected_failures: As for `check_strategy`.

    Returns:
        What came of each check.

    Raises:
        AssertionError: As `check_strategy`.
        ValueError: As `check_strategy`.
    """
    return _all_good(_run(_pairs(FORMAT_CHECKS, [FormatSubject(cls, rows)]), expected_failures))


def parametrize_with_checks(
    strategies: Sequence[AnyStrategy],
    *,
    expected_failures: Failures = None,
    trainable_parameters: Callable[[nn.Module, AdaptContext], int] | None = None,
) -> pytest.MarkDecorator:
    """Makes a test of every check: ``@parametrize_with_checks([MyStrategy])`` above ``def test_x(check): check()``.

    A check that does not apply is skipped with its reason; one that is expected to fail must fail.

    Args:
        strategies: Classes, or instances with the options to be used.
        expected_failures: As for `check_strategy`.
        trainable_parameters: As for `check_strategy`.

    Raises:
        ValueError: There is no check of the name that is expected to fail.
    """
    pairs = [pair for one in strategies for pair in _pairs(STRATEGY_CHECKS, subjects(one, trainable_parameters))]
    return _parametrized(pairs, expected_failures)


def parametrize_with_task_checks(
    task: AnyTask, rows: Rows, *, bad_rows: Rows = (), questions: Rows = (), expected_failures: Failures = None
) -> pytest.MarkDecorator:
    """Makes a test of every check of a task; the arguments are those of `check_task`."""
    everywhere = task_subjects(task, rows, bad_rows=bad_rows, questions=questions)
    return _parametrized(_pairs(TASK_CHECKS, everywhere), expected_failures)


def run_checks(
    strategy: AnyStrategy,
    *,
    expected_failures: Failures = None,
    trainable_parameters: Callable[[nn.Module, AdaptContext], int] | None = None,
) -> Iterator[Outcome]:
    """Yields what comes of each check of a strategy, as it comes; the arguments are those of `check_strategy`."""
    return _run(_pairs(STRATEGY_CHECKS, subjects(strategy, trainable_parameters)), expected_failures)


def _pairs(checks: Iterable[Check], everywhere: Sequence[AnySubject]) -> list[Pair]:
    """Returns each check with each subject, or with the first where the base does not matter."""
    return [(one, subject) for one in checks for subject in (everywhere[:1] if one.once else everywhere)]


def _run(pairs: Sequence[Pair], failures: Failures) -> Iterator[Outcome]:
    _check_names(pairs, failures)
    for one, subject in pairs:
        yield _outcome(one, subject, _expected(failures, one, subject))


def _outcome(one: Check, subject: AnySubject, expected: str) -> Outcome:
    started = time.monotonic()
    state: State
    try:
        one(subject)
    except NotApplicable as reason:
        state, why = "not applicable", str(reason)
    except Exception as error:  # Of every kind: what the strategy raises is what is to be told.
        state, why = ("expected failure", expected) if expected else ("failed", _describe(error))
    else:
        state, why = ("unexpected pass", f"was expected to fail: {expected}") if expected else ("passed", "")
    base = "" if one.once else subject.base_name
    return Outcome(one.name, one.summary, subject.name, base, state, why, time.monotonic() - started)


def _describe(error: Exception) -> str:
    """Returns what a check raised, in one line."""
    if isinstance(error, AdaptkitError):
        return f"{type(error).__name__}: {error.problems[0].found}"
    text = " ".join(str(error).split())
    return text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"


def _all_good(outcomes: Iterable[Outcome]) -> list[Outcome]:
    done = list(outcomes)
    bad = [outcome for outcome in done if not outcome.good]
    if bad:
        raise AssertionError("\n".join([f"{len(bad)} of {len(done)} checks failed:", *map(str, bad)]))
    return done


def _parametrized(pairs: Sequence[Pair], failures: Failures) -> pytest.MarkDecorator:
    import pytest

    _check_names(pairs, failures)

    def case(one: Check, subject: AnySubject) -> Any:
        reason = _expected(failures, one, subject)
        marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
        label = subject.name if one.once else f"{subject.name} on {subject.base_name}"
        return pytest.param(_Call(one, subject), id=f"{one.name}-{label}", marks=marks)

    return pytest.mark.parametrize("check", [case(*pair) for pair in pairs])


class _Call:
    """A check with its subject, to be called by a test."""

    def __init__(self, one: Check, subject: AnySubject) -> None:
        self._check, self._subject = one, subject

    def __call__(self) -> None:
        import pytest

        try:
            self._check(self._subject)
        except NotApplicable as reason:
            pytest.skip(str(reason))

    def __repr__(self) -> str:
        return f"{self._check.name} of {self._subject.name}"


def _expected(failures: Failures, one: Check, subject: AnySubject) -> str:
    """Returns why a check is expected to fail; empty: it is not."""
    known = {**subject.known_failures, **(failures or {})}
    return known.get(one.name) or known.get(f"{one.name} on {subject.base_name}") or ""


def _check_names(pairs: Sequence[Pair], failures: Failures) -> None:
    """Raises when a failure is expected of a check or a base that there is not."""
    names = {one.name for one, _ in pairs}
    allowed = names | {f"{name} on {base}" for name in names for base in BASES}
    known = {name for _, subject in pairs for name in subject.known_failures}
    for name in sorted(known | set(failures or {})):
        if name not in allowed:
            hint = did_you_mean(name, allowed) or f"the checks are {', '.join(sorted(names))}"
            raise ValueError(f"there is no check {name!r} to be expected to fail ({hint})")
