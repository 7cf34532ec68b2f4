"""Which rows a share of a source is: told by each row alone, whatever stands around it.

A row goes where the sha256 of its content points. So the same row goes the same way in another order, in a file that
has grown and in a mixture, and two equal rows never stand on the two sides of a split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adaptkit.data.columns import ABSENT, column_value
from adaptkit.data.problems import data_error, enumerate_names, is_missing
from adaptkit.errors import DataError, Problem
from adaptkit.recipe.schema import DataSpec, Split
from adaptkit.task import Row


def content_keys(rows: Sequence[Row], without_labels: Callable[[Row], Mapping[str, Any]]) -> list[str]:
    """Returns what decides where each row goes.

    Args:
        rows: By role.
        without_labels: Returns what a row asks: one text with two labels does not stand on two sides.
    """
    return [_key(without_labels(row)) for row in rows]


def group_keys(rows: Sequence[Row], group: str) -> list[str]:
    """Returns the key of each row's group.

    Args:
        rows: As they were read.
        group: A column.

    Raises:
        DataError: Rows without that column, or with nothing in it.
    """
    values = [column_value(row, group) for row in rows]
    if all(value is ABSENT for value in values):
        found = f"there is no column {group!r} to keep rows together by"
        columns = enumerate_names(list(rows[0].values))
        raise DataError(found, where=rows[0].where, allowed=columns, fix="name one of these under data.group")
    if problems := [
        Problem(f"the group {group!r} is null", row.where, fix="name the row's group, or remove the row")
        for row, value in zip(rows, values, strict=True)
        if value is ABSENT or is_missing(value)
    ]:
        raise data_error(problems)
    return [_key(value) for value in values]


def side(key: str, data: DataSpec) -> Split:
    """Returns the split to which a training row goes; neither share moves the rows of the other."""
    point = _point("split", key)
    if point < data.share("test"):
        return "test"
    return "evaluation" if point >= 1 - data.share("evaluation") else "train"


def times(key: str, weight: float) -> int:
    """Returns how often a row is taken in an epoch: the whole part of a weight, and one more for a share of the rows.

    Args:
        key: Of the row.
        weight: Of its source.
    """
    whole = int(weight)
    return whole + (_point("weight", key) < weight - whole)


def _key(value: Mapping[str, Any] | Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _point(purpose: str, key: str) -> float:
    """Returns a number in [0, 1), for each purpose another one."""
    digest = hashlib.sha256(f"{purpose}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
