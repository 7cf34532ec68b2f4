"""What a check is, when it applies, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

State: TypeAlias = Literal["passed", "failed", "not applicable", "expected failure", "unexpected pass"]
Condition: TypeAlias = Callable[[Any], str | None]


class NotApplicable(Exception):  # noqa: N818 - no error: what is asked of a subject does not concern it
    """A check says nothing about a subject; the message says why."""


@dataclass(frozen=True)
class Check:
    """One property, and whom it concerns. Call it with a subject: it raises what is wrong.

    Attributes:
        name: ``check_…``.
        function: Raises an `AssertionError` whose message says what was found, or whatever the subject raises.
        conditions: Each returns why the check does not apply to a subject, or None.
        once: Whether the property does not depend on the base.
    """

    name: str
    function: Callable[[Any], None]
    conditions: tuple[Condition, ...] = ()
    once: bool = False

    def __call__(self, subject: Any) -> None:
        """Tries the property on a subject.

        Raises:
            NotApplicable: It does not concern the subject.
            AssertionError: It does not hold.
        """
        for condition in self.conditions:
            if reason := condition(subject):
                raise NotApplicable(reason)
        self.function(subject)

    @property
    def summary(self) -> str:
        """The property in one sentence."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]


def check(*conditions: Condition, once: bool = False) -> Callable[[Callable[[Any], None]], Check]:
    """Makes a `Check` of a function.

    Args:
        *conditions: When it applies.
        once: Whether the property does not depend on the base.
    """
    return lambda function: Check(function.__name__, function, conditions, once)


@dataclass(frozen=True)
class Declares:
    """The condition that a subject declares a capability, or that it does not.

    Attributes:
        capability: Its name.
        wanted: Whether it is to be declared.
    """

    capability: str
    wanted: bool = True

    def __call__(self, subject: Any) -> str | None:
        """Returns why a check does not apply, or None."""
        declared = bool(getattr(subject.capabilities, self.capability))
        return None if declared == self.wanted else f"{self.capability} is {'' if declared else 'not '}declared"


def needs(capability: str) -> Condition:
    """Returns the condition that a subject declares a capability."""
    return Declares(capability)


def lacks(capability: str) -> Condition:
    """Returns the condition that a subject does not declare a capability."""
    return Declares(capability, wanted=False)


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Attributes:
        check: Its name.
        summary: The property in one sentence.
        subject: Name of the strategy, task or format.
        base: Name of the tiny base; empty where the property does not depend on it.
        state: What came of it.
        reason: Why it failed, does not apply, or was expected to fail.
        seconds: How long it took.
    """

    check: str
    summary: str
    subject: str
    base: str
    state: State
    reason: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        place = f" on {self.base}" if self.base else ""
        return f"{self.check}, {self.subject}{place}: {self.state}" + (f": {self.reason}" if self.reason else "")

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return self.state not in ("failed", "unexpected pass")
