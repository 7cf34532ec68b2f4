"""What is wrong with a field of a row, and what a person should know of rows that occur twice."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any


def is_missing(value: Any) -> bool:
    """Returns whether a field is null; a column of numbers has NaN in its place."""
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


def name_problem(value: Any) -> tuple[str, str] | None:
    """Returns what is wrong with the name of a label or a tag and what to do, or None."""
    if is_missing(value):
        return "is null", "give the row a label, or remove it"
    if isinstance(value, float):
        return f"is the number {value!r}", "write a class as a string or a whole number"
    if not isinstance(value, str | int):
        return f"is a {type(value).__name__}", "write one string or whole number"
    if not str(value).strip():
        return "is an empty string", "give the row a label, or remove it"
    return None


def note_repeated(train: Iterable[Hashable], other: Sequence[Hashable], split: str) -> list[str]:
    """Returns a note where rows of a held-out split are also training rows; both by what the model reads of them."""
    known = set(train)
    repeated = sum(row in known for row in other)
    if not repeated:
        return []
    return [f"{repeated:,} of {len(other):,} {split} rows are also training rows, so the {split} figures flatter"]
