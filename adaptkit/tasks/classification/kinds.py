"""Which kind of label the rows have, where the recipe leaves it open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptkit.data.problems import is_missing
from adaptkit.errors import DataError
from adaptkit.tasks.classification.regression import as_number
from adaptkit.tasks.classification.target import TRAIN, Kind


def guess_kind(labels: Sequence[Any]) -> Kind:
    """Returns the kind of most labels: lists are several labels a row, all else is one.

    Args:
        labels: Of the training rows, as the file has them.

    Raises:
        DataError: They are numbers with decimals. As classes they would train without complaint.
    """
    given = [label for label in labels if not is_missing(label)]
    if 2 * sum(isinstance(label, list) for label in given) > len(given):
        return "multi"
    example = next(filter(_has_decimals, given), None)
    if example is not None and all(_is_number(label) for label in given):
        raise DataError(
            f"the labels are numbers with decimals, such as {example}",
            where=TRAIN,
            allowed="names or whole numbers of classes, unless the recipe says that numbers are predicted",
            fix="set task.kind to regression to predict the number, or to single and write each class as a string",
        )
    return "single"


def _is_number(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and as_number(value) is not None


def _has_decimals(value: Any) -> bool:
    """Returns whether a label is written as a number with a decimal point: 3.5, "3.5", 3.0."""
    return isinstance(value, float) or (isinstance(value, str) and "." in value and _is_number(value))
