"""Rows of texts with one label each: read, and checked field by field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptkit.data.problems import is_missing, text_problem
from adaptkit.errors import Problem
from adaptkit.task import Row
from adaptkit.tasks.classification.target import Example, Target


def read_examples(
    rows: Sequence[Row], target: Target, *, labelled: bool, paired: bool
) -> tuple[list[Example], list[Problem]]:
    """Reads rows, and finds everything that is wrong with them.

    Args:
        rows: By role.
        target: Knows what a label may be.
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
            "text": text_problem(text),
            "text_pair": text_problem(pair) if paired else None,
            "label": _label_problem(label, target) if labelled or label is not None else None,
        }
        for role, check in checks.items():
            if check:
                problems.append(Problem(f"the {role} {check[0]}", row.place(role), fix=check[1]))
        parsed = None if label is None or checks["label"] else target.parse(label)
        examples.append(Example(text, pair, parsed, row.where))
    return examples, problems


def _label_problem(value: Any, target: Target) -> tuple[str, str] | None:
    if is_missing(value):
        return "is null", "give the row a label, or remove it"
    return target.problem(value)
