"""The rows of a run, read and renamed, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence

from adaptkit.data.columns import select_columns
from adaptkit.data.sources import fingerprint, read_rows
from adaptkit.errors import AdaptkitError, DataError, Problem
from adaptkit.recipe import DataSpec
from adaptkit.task import Row, Splits


def load_splits(data: DataSpec, roles: Sequence[str], optional: Sequence[str] = ()) -> Splits:
    """Reads every split that the recipe names.

    Args:
        data: The recipe's section.
        roles: Columns that each row needs.
        optional: Columns that a row may have.

    Raises:
        DataError: The problems of all splits at once.
    """
    problems: list[Problem] = []
    splits: dict[str, list[Row]] = {}
    for split in ("train", "evaluation", "test"):
        source = getattr(data, split)
        if source is None:
            continue
        try:
            splits[split] = select_columns(read_rows(source), roles, data.columns, optional=optional)
        except AdaptkitError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return Splits(**splits)


def fingerprints(data: DataSpec) -> dict[str, str]:
    """Returns the sha256 of each split, by its name."""
    named = {split: getattr(data, split) for split in ("train", "evaluation", "test")}
    return {split: fingerprint(source) for split, source in named.items() if source is not None}
