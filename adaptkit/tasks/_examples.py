"""Rows of texts with one label each: read, and checked field by field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptkit.errors import Problem
from adaptkit.task import Row


@dataclass(frozen=True)
class Example:
    """One row of a classification data set.

    Attributes:
        text: What is classified; of another type than a string only where the row is a problem.
        pair: The second text of a pair, or None.
        label: Name of the label; None where the row has none.
        where: Of the row.
    """

    text: str
    pair: str | None
    label: str | None
    where: str


def read_examples(
    rows: Sequence[Row], columns: Mapping[str, str], *, labelled: bool, paired: bool
) -> tuple[list[Example], list[Problem]]:
    """Reads rows, and finds everything that is wrong with them.

    Args:
        rows: By role.
        columns: Role to column, where the file had another name, for the messages.
        labelled: Every row needs a label; otherwise one may be missing or null.
        paired: Every row needs a second text; otherwise it is not looked at.

    Returns:
        One example a row, and the problems; with any problem the examples are of no use but for their labels.
    """
    examples, problems = [], []
    for row in rows:
        text: Any = row.values.get("text")
        pair = row.values.get("text_pair") if paired else None
        label = row.values.get("label")
        checks = {
            "text": _text_problem(text),
            "text_pair": _text_problem(pair) if paired else None,
            "label": _label_problem(label) if labelled or label is not None else None,
        }
        for role, check in checks.items():
            if check:
                where = f"{row.where}, column {columns.get(role, role)!r}"
                problems.append(Problem(f"the {role} {check[0]}", where, fix=check[1]))
        name = None if label is None or checks["label"] else str(label)
        examples.append(Example(text, pair, name, row.where))
    return examples, problems


def _text_problem(value: Any) -> tuple[str, str] | None:
    """Returns what is wrong with a text and what to do, or None."""
    if value is None or _is_nan(value):
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


def _label_problem(value: Any) -> tuple[str, str] | None:
    """Returns what is wrong with a label and what to do, or None."""
    if value is None or _is_nan(value):
        return "is null", "give the row a label, or remove it"
    if isinstance(value, float):
        return f"is the number {value!r}", "write a class as a string or a whole number"
    if not isinstance(value, str | int):
        return f"is a {type(value).__name__}", "write one string or whole number; one row has one label"
    if not str(value).strip():
        return "is an empty string", "give the row a label, or remove it"
    return None


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
