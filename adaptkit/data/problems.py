"""What is wrong with data, and how much of it a person is shown at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from adaptkit.errors import DataError, Problem

MAX_SHOWN = 10


def data_error(problems: Sequence[Problem]) -> DataError:
    """Returns one error for all problems: the first ten in full, the rest as a number."""
    shown = list(problems[:MAX_SHOWN])
    hidden = len(problems) - len(shown)
    if hidden:
        shown.append(Problem(f"{hidden:,} more problems"))
    return DataError(shown)


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
        return f"is the number {value!r}, not a string", f'write it as a string, "{value}", if it is the text'
    if not isinstance(value, str):
        return f"is a {type(value).__name__}, not a string", "write one string"
    if not value.strip():
        return "has only white space" if value else "is an empty string", "give the row a text, or remove it"
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        return "has half of a surrogate pair, which is no character", "export the row again as UTF-8"
    return None
