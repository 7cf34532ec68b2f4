"""The rows of a run, read and by the roles of its task, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, get_args

from adaptkit.data.columns import Paste, data_line, flow
from adaptkit.data.problems import data_error
from adaptkit.data.recognition import layouts_of, read_as
from adaptkit.data.shares import content_keys, group_keys, side, times
from adaptkit.data.sources import fingerprint, read_rows
from adaptkit.errors import DataError, Problem
from adaptkit.format import Format
from adaptkit.recipe import DataSpec
from adaptkit.recipe.schema import Source, Split
from adaptkit.task import Row, Splits, Task

Formats: TypeAlias = Mapping[str, type[Format]]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class _Loaded:
    """Rows by split, and the names of the formats that they were written in."""

    rows: dict[Split, list[Row]]
    formats: tuple[str, ...]


def load_splits(data: DataSpec, task: Task[Any], formats: Formats) -> Splits:
    """Reads every split that the recipe names.

    Args:
        data: The recipe's section.
        task: Whose roles the rows get.
        formats: Those that there are, by name.

    Raises:
        DataError: The problems of all splits at once.
    """
    loaded = _load(data, SPLITS, task, formats)
    return Splits(loaded.rows["train"], loaded.rows["evaluation"], loaded.rows["test"], loaded.formats)


def load_split(data: DataSpec, split: Split, task: Task[Any], formats: Formats) -> list[Row]:
    """Reads one split alone; where it is a share of the training rows, the same ones that the run kept for it.

    Raises:
        DataError: Everything that is wrong with the rows.
    """
    return _load(data, ["train" if data.share(split) else split], task, formats).rows[split]


def load_rows(source: str, data: DataSpec, task: Task[Any], formats: Formats, *, labelled: bool) -> list[Row]:
    """Reads a source that the recipe does not name; its format and columns count where they fit these rows.

    Args:
        source: A file, a folder or a hub id.
        data: The recipe's section.
        task: Whose roles the rows get.
        formats: Those that there are, by name.
        labelled: Whether every row needs its label.

    Raises:
        DataError: Everything that is wrong with the rows.
    """
    layouts = layouts_of(task, formats, labelled=labelled)
    known = {role for layout in layouts.values() for role in layout.roles}
    columns = {role: column for role, column in data.columns.items() if role in known}
    rows = read_rows(source)
    try:
        return read_as(rows, data.format, columns, layouts)[0]
    except DataError as error:
        try:  # Written in another way than those that the recipe names.
            return read_as(rows, "auto", {}, layouts)[0]
        except DataError:
            raise error from None


def fingerprints(data: DataSpec) -> dict[str, str]:
    """Returns the sha256 of each source, by the name that the recipe gives it."""
    names = dict.fromkeys(source.source for split in SPLITS for source in data.sources(split))
    return {name: fingerprint(name) for name in names}


def _load(data: DataSpec, sources_of: Sequence[Split], task: Task[Any], formats: Formats) -> _Loaded:
    """Reads the sources of some splits, and lets the shares take their rows."""
    problems: list[Problem] = []
    names: list[str] = []
    rows: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    for split in sources_of:
        for source in data.sources(split):
            try:
                name, parts = _read(source, split, data, task, formats)
            except DataError as error:
                problems += error.problems
                continue
            names.append(name)
            for part in SPLITS:
                rows[part] += parts.get(part, [])
    if not problems and "train" in sources_of:
        problems += _left_empty(rows, data)
    if problems:
        raise data_error(problems)
    return _Loaded(rows, tuple(dict.fromkeys(names)))


def _read(
    source: Source, split: Split, data: DataSpec, task: Task[Any], formats: Formats
) -> tuple[str, dict[Split, list[Row]]]:
    """Returns the format of a source, and its rows by the split that they go to."""
    found = read_rows(source.source)
    columns = data.columns if source.columns is None else source.columns
    layouts = layouts_of(task, formats, labelled=True)
    rows, name = read_as(found, source.format or data.format, columns, layouts, paste=_paste(source, split, data))
    divided = split == "train" and any(data.share(part) for part in SPLITS)
    if not divided and source.weight == 1:
        return name, {split: rows}
    contents = content_keys(rows, task.without_labels)
    groups = group_keys(found, data.group) if data.group is not None else contents
    parts: dict[Split, list[Row]] = {part: [] for part in SPLITS}
    for row, content, group in zip(rows, contents, groups, strict=True):
        part = side(group, data)
        parts[part] += [row] * (times(content, source.weight) if part == "train" else 1)
    return name, parts


def _left_empty(rows: Mapping[Split, Sequence[Row]], data: DataSpec) -> list[Problem]:
    """Returns a problem for each split that is to have a share of the training rows and has none."""
    whole = "groups" if data.group else "rows"
    problems = [
        Problem(
            f"of so few {whole} none falls into the share for {split}",
            f"data.{split}: {data.share(split)}",
            fix=f"take a larger share, or name a file of {split} rows",
        )
        for split in SPLITS
        if data.share(split) and not rows[split]
    ]
    if not rows["train"]:
        found = "the shares and weights leave no row to train on"
        problems.append(Problem(found, data.named("train"), fix="take smaller shares, or raise a weight"))
    return problems


def _paste(source: Source, split: Split, data: DataSpec) -> Paste:
    """Returns how a key for a source is written: in the data section, or beside it where there are others."""
    alone = len(data.sources(split)) == 1 and not (source.format or source.columns)
    return data_line if alone else partial(_source_line, source)


def _source_line(source: Source, **keys: Any) -> str:
    given = source.model_dump(mode="json", exclude_defaults=True)
    return flow({**given, **keys})
