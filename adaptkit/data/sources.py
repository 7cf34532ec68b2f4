"""Where rows come from: a file, a folder of texts, one saved by ``datasets``, or a data set on the Hugging Face hub.

Nothing that is read can run code: text and columnar formats only, and ``datasets`` runs no loading scripts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.data.digest import file_sha256
from adaptkit.data.problems import data_error, enumerate_names
from adaptkit.data.readers import READERS
from adaptkit.errors import DataError, Problem, did_you_mean
from adaptkit.task import Row

if TYPE_CHECKING:
    from datasets import Dataset

# The owner is required: `datasets` takes a bare name for one of its builders ("json", "sql").
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
SOURCES = (
    f"a file ({', '.join(READERS)}), a folder of .txt files or one saved by `datasets`, "
    "or a hub id such as stanfordnlp/imdb:train"
)
SAVED_BY_DATASETS = ("dataset_dict.json", "state.json")


def read_rows(source: str) -> list[Row]:
    """Reads every row of a source.

    Args:
        source: A file, a folder of texts, a folder saved by ``datasets`` or a hub id; the last two take ``:split``
            at the end.

    Returns:
        At least one row; `Row.where` is ``file:line`` for formats of lines, else ``source, row k``.

    Raises:
        DataError: The source does not exist, is empty, or cannot be read; with everything wrong in a file at once.
    """
    name, split = _resolve(source)
    path = _local(name)
    if path.is_file():
        rows = _file_rows(path)
    elif texts := _texts(path):
        rows = _folder_rows(texts, split)
    else:
        rows = _dataset_rows(name, split)
    if not rows:
        raise DataError("there are no rows in it", where=source, allowed="at least one row", fix="check the export")
    return rows


def fingerprint(source: str) -> str:
    """Returns a sha256 that changes with the data: of a file's bytes, a folder's files, or a hub data set's rows."""
    name, _ = _resolve(source)
    path = _local(name)
    if path.is_file():
        return file_sha256(path)
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}\n".encode())
    else:
        for row in read_rows(source):
            digest.update(json.dumps(row.values, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _resolve(source: str) -> tuple[str, str | None]:
    """Splits a source into a path or hub id, and a split.

    Raises:
        DataError: It is neither there nor a hub id.
    """
    if os.path.isfile(_local(source)) or os.path.isdir(_local(source)):
        return source, None
    name, _, split = source.rpartition(":")
    if name and os.path.isdir(_local(name)):
        return name, split
    name = name or source
    if HUB_ID.fullmatch(name) and Path(name).suffix.lower() not in READERS:
        return name, split if name != source else None
    raise DataError(f"there is no file or folder {source!r}", where=source, allowed=SOURCES, fix=_missing_fix(source))


def _local(name: str) -> Path:
    # os.path, here and in _resolve, takes any string for a path; pathlib raises on an unknown user or a long name.
    return Path(os.path.expanduser(name))


def _missing_fix(source: str) -> str:
    path = _local(source)
    if not path.parent.is_dir():
        return f"the folder {str(path.parent)!r} does not exist either; check the path"
    hint = did_you_mean(path.name, sorted(file.name for file in path.parent.iterdir()))
    return hint or f"check the path; it is read from {str(Path.cwd())!r}"


def _file_rows(path: Path) -> list[Row]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"the suffix {path.suffix!r} is not one of a data file",
            where=str(path),
            allowed=", ".join(READERS),
            fix=did_you_mean(path.suffix.lower(), READERS) or "convert the file, or name it by its real format",
        )
    try:
        if not path.stat().st_size:
            raise DataError("the file is empty", where=str(path), allowed="at least one row", fix="check the export")
        return reader(path)
    except OSError as error:
        reason = error.strerror or error
        fix = "check that it is there and that you may read it"
        raise DataError(f"the file cannot be read: {reason}", where=str(path), fix=fix) from None


def _texts(folder: Path) -> list[Path]:
    """Returns the files of a folder whose data are .txt files and nothing else."""
    if not folder.is_dir() or any((folder / file).is_file() for file in SAVED_BY_DATASETS):
        return []
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix.lower() in READERS]
    return files if all(file.suffix.lower() == ".txt" for file in files) else []


def _folder_rows(texts: Sequence[Path], split: str | None) -> list[Row]:
    """Reads one row a file.

    Raises:
        DataError: A split is asked for; one problem for each file that is empty or not UTF-8.
    """
    if split is not None:
        raise DataError(f"a folder of texts has no split {split!r}", where=str(texts[0].parent), fix="name the folder")
    rows: list[Row] = []
    problems: list[Problem] = []
    for file in texts:
        try:
            rows += _file_rows(file)
        except DataError as error:
            problems += error.problems
    if problems:
        raise data_error(problems)
    return rows


def _dataset_rows(name: str, split: str | None) -> list[Row]:
    import datasets

    dataset = _choose_split(_load_dataset(name), name, split)
    label_names = {
        column: label.names
        for column, feature in dataset.features.items()
        # Tags and lists of labels are a list of them.
        if isinstance(label := getattr(feature, "feature", feature), datasets.ClassLabel)
    }
    rows = []
    for number, values in enumerate(dataset.with_format(None), 1):
        for column, names in label_names.items():
            values[column] = _label_name(values[column], names)
        rows.append(Row(values, f"{name}, row {number}"))
    return rows


def _label_name(index: Any, names: Sequence[str]) -> Any:
    """Returns the name of a label, or those of a list; `datasets` marks one that is missing by -1."""
    if isinstance(index, list):
        return [_label_name(one, names) for one in index]
    return names[index] if index is not None and index >= 0 else None


def _load_dataset(name: str) -> Any:
    """Returns a ``datasets.Dataset`` or a ``DatasetDict``."""
    import datasets

    folder = _local(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in SAVED_BY_DATASETS):
        files = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in READERS)
        raise DataError(
            "the folder holds no data set saved by `datasets`",
            where=name,
            allowed=SOURCES,
            fix=f"name one of its files: {enumerate_names(files)}" if files else "name a file",
        )
    try:
        return datasets.load_from_disk(str(folder)) if folder.is_dir() else datasets.load_dataset(name)
    except Exception as error:  # Hub, network, file system and builders raise errors of no common class.
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{'the folder is not readable' if folder.is_dir() else 'neither this disk nor the hub has it'}: {reason}",
            where=name,
            allowed=SOURCES,
            fix=_missing_fix(name) if not folder.is_dir() else "save it again with `Dataset.save_to_disk`",
        ) from None


def _choose_split(loaded: Any, name: str, split: str | None) -> Dataset:
    """Returns the split that was asked for, or the only one: to guess could train on the test rows."""
    splits = dict(loaded) if isinstance(loaded, dict) else {}
    if not splits and split is None:
        return loaded
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split in splits:
        return splits[split]
    raise DataError(
        f"the data set has no split {split!r}" if split else "the data set has several splits and none is named",
        where=name,
        allowed=enumerate_names([f"{name}:{known}" for known in splits]) or f"{name!r}: it has no splits",
        fix=did_you_mean(split or "", splits) or "name the source as it stands under 'allowed'",
    )
