"""Errors that a person can act on.

Every error says four things: what was found, where, what is allowed, and what to do. One error may
carry several problems, so that a recipe or a data file with five mistakes is repaired once, not five times.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        found: What was found, in one sentence.
        where: ``file:line:column``, file and row, or the name of a part; None when there is no place.
        allowed: What would have been accepted.
        fix: What to do about it.
    """

    found: str
    where: str | None = None
    allowed: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        lines = [self.found]
        for label, text in (("where", self.where), ("allowed", self.allowed), ("fix", self.fix)):
            if text:
                lines.append(f"  {label + ':':<9}" + text.replace("\n", "\n" + " " * 11))
        return "\n".join(lines)


class AdaptkitError(Exception):
    """The parent of every error that adaptkit raises on purpose.

    Attributes:
        exit_code: What the command line exits with.
        problems: At least one problem.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        found: str | Sequence[Problem],
        *,
        where: str | None = None,
        allowed: str | None = None,
        fix: str | None = None,
    ) -> None:
        if isinstance(found, str):
            self.problems: tuple[Problem, ...] = (Problem(found, where, allowed, fix),)
        else:
            self.problems = tuple(found)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[AdaptkitError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class RecipeError(AdaptkitError):
    """The recipe or the arguments are wrong."""

    exit_code = 2


class DataError(AdaptkitError):
    """The data cannot be used as the recipe says."""

    exit_code = 3


class PluginError(AdaptkitError):
    """A plugin did not load, clashes with another one, breaks its contract in a run, or raised while it was called."""

    exit_code = 4


class FitError(AdaptkitError):
    """The run does not fit into the memory of the device."""

    exit_code = 5


class CheckpointError(AdaptkitError):
    """A checkpoint or an artifact is missing, incomplete, changed or of another run."""

    exit_code = 6


class RunInterruptedError(AdaptkitError):
    """The run was stopped from outside after its state had been saved."""

    exit_code = 7


class ModelError(AdaptkitError):
    """The base model cannot be loaded, or cannot be adapted in the way that was asked for."""

    exit_code = 2


class TrainingError(AdaptkitError):
    """A run that cannot learn: no label, no gradient, a loss that is not finite."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str | None:
    """Returns ``did you mean 'x'?`` for the nearest allowed name, or None when none is near."""
    near = difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else None
