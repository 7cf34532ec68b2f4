"""What is wrong with the name of a class, and what a person should know of rows that occur twice."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from adaptkit.data.problems import is_missing, kind_of


def name_problem(value: Any) -> tuple[str, str] | None:
    """Returns what is wrong with the name of a label or a tag and what to do, or None."""
    if is_missing(value):
        return "is null", "give the row a label, or remove it"
    if isinstance(value, float):
        return f"is {kind_of(value)}", "write a class as a string or a whole number"
    if not isinstance(value, str | int):
        return f"is {kind_of(value)}", "write one string or whole number"
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
