"""What is wrong with data, and how much of it a person is shown at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adaptkit.errors import DataError, Problem

MAX_SHOWN = 10


def data_error(problems: Sequence[Problem]) -> DataError:
    """Returns one error for all problems.

    What is wrong in the same way at several places is one problem with all of them. The first ten problems, and of
    each the first ten places, are shown; the rest is a number.
    """
    places: dict[Problem, list[str]] = {}
    for problem in problems:
        places.setdefault(replace(problem, where=None), []).append(problem.where or "")
    shown = [replace(problem, where=_shown(where)) for problem, where in list(places.items())[:MAX_SHOWN]]
    hidden = sum(map(len, list(places.values())[MAX_SHOWN:]))
    if hidden:
        shown.append(Problem(f"{hidden:,} more problems"))
    return DataError(shown)


def _shown(places: Sequence[str]) -> str | None:
    """Returns places, one a line; of many the first, and how many more there are."""
    known = [place for place in places if place]
    hidden = len(known) - MAX_SHOWN
    return "\n".join([*known[:MAX_SHOWN], *([f"and {hidden:,} more"] if hidden > 0 else [])]) or None


def kind_of(value: Any) -> str:
    """Returns what a value is, in the words of a person who does not know Python: ``a list``, ``the number 7``."""
    if is_missing(value):
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value!r}"
    kinds: tuple[tuple[type, str], ...] = (
        (str, "a string"),
        (list, "a list"),
        (tuple, "a list"),
        (Mapping, "an object"),
    )
    return next((words for kind, words in kinds if isinstance(value, kind)), f"a {type(value).__name__}")


def enumerate_names(names: Sequence[str], limit: int = 20) -> str:
    """Returns ``'a', 'b'`` for a message; a long list is cut and ends with how many are left out."""
    text = ", ".join(repr(name) for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit:,} more"


def is_missing(value: Any) -> bool:
    """Returns whether a field is null; Parquet and pandas write that as NaN in a column of numbers."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_problem(value: Any) -> tuple[str, str] | None:
    """Returns what is wrong with a text and what to do, or None."""
    if is_missing(value):
        return "is null", "give the row a text, or remove it"
    if isinstance(value, bool | int | float):
        return f"is {kind_of(value)}, not a string", f'write it as a string, "{value}", if it is the text'
    if not isinstance(value, str):
        return f"is {kind_of(value)}, not a string", "write one string"
    if not value.strip():
        return "has only white space" if value else "is an empty string", "give the row a text, or remove it"
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        return "has half of a surrogate pair, which is no character", "export the row again as UTF-8"
    return None
