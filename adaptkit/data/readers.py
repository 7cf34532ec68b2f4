"""Files by their suffix: one reader each, which reports everything that is wrong in its file at once."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from adaptkit.data.conll import read_conll, read_conllu
from adaptkit.data.problems import data_error
from adaptkit.data.text import decoded, read_text
from adaptkit.errors import DataError, Problem
from adaptkit.task import Row

LONGEST_FIELD = 2**31 - 1  # characters; python's own limit of 131,072 is less than a long document has
OBJECT_EXAMPLE = '{"text": "a fine film", "label": "positive"}'


def read_jsonl(path: Path) -> list[Row]:
    """Reads one JSON object a line; empty lines are skipped.

    Raises:
        DataError: One problem for each line that is not a JSON object.
    """
    rows, problems = [], []
    # str.splitlines would also cut at U+2028 and its like, which JSON allows inside a string.
    for number, line in enumerate(decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(_broken_json(error, path, number))
        else:
            rows.append(Row(values, where))
            problems.extend(_not_an_object(values, where))
    return _all_good(rows, problems)


def read_json(path: Path) -> list[Row]:
    """Reads a list of JSON objects, or an object whose key ``data`` holds that list.

    Raises:
        DataError: The file is not such a list; one problem for each element that is not an object.
    """
    try:
        content = json.loads(decoded(path) or "[]")
    except (ValueError, RecursionError) as error:
        raise data_error([_broken_json(error, path)]) from None
    elements = content.get("data") if isinstance(content, dict) else content
    if not isinstance(elements, list):
        raise DataError(
            f"the file holds {_kind(content)}, not a list of rows",
            where=str(path),
            allowed='a list of objects, or {"data": [...]}',
            fix="put the rows into a list; a file with one object a line is named .jsonl",
        )
    rows = [Row(values, f"{path}, row {number}") for number, values in enumerate(elements, 1)]
    return _all_good(rows, [problem for row in rows for problem in _not_an_object(row.values, row.where)])


def read_csv(path: Path, *, delimiter: str) -> list[Row]:
    """Reads delimited text whose first record is the header; every value is a string.

    Raises:
        DataError: A column name occurs twice, a record has another number of fields, or a quote is not closed.
    """
    problems: list[Problem] = []
    records = _records(path, delimiter, problems)
    line, header = next(records, (1, []))
    problems.extend(_repeated_columns(header, f"{path}:{line}"))
    rows = []
    for line, fields in records:
        where = f"{path}:{line}"
        rows.append(Row(dict(zip(header, fields, strict=False)), where))
        if len(fields) != len(header):
            found = f"the row has {len(fields)} fields, the header {len(header)}"
            fix = f"put a field that contains {delimiter!r}, quotes or line breaks into double quotes"
            problems.append(Problem(found, where, f"{len(header)} fields", fix))
    return _all_good(rows, problems)


def read_parquet(path: Path) -> list[Row]:
    """Reads a Parquet file.

    Raises:
        DataError: The file is not Parquet, is damaged, or has a column name twice.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
        values = table.to_pylist()
    except (ValueError, pyarrow.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"the file is not readable as Parquet: {reason}",
            where=str(path),
            fix="write it again, or name it by its real format",
        ) from None
    rows = [Row(row, f"{path}, row {number}") for number, row in enumerate(values, 1)]
    return _all_good(rows, _repeated_columns(table.column_names, str(path)))


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": partial(read_csv, delimiter=","),
    ".tsv": partial(read_csv, delimiter="\t"),
    ".parquet": read_parquet,
    ".txt": read_text,
    ".conll": read_conll,
    ".conllu": read_conllu,
}


def _all_good(rows: list[Row], problems: Sequence[Problem]) -> list[Row]:
    if problems:
        raise data_error(problems)
    return rows


def _records(path: Path, delimiter: str, problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """Yields every record that is not empty with the line on which it begins; a broken one ends the file."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(decoded(path), newline=""), delimiter=delimiter, strict=True)
    begin = 1
    try:
        for fields in reader:
            if fields:
                problems += _swallowed(fields, delimiter, f"{path}:{begin}")
                yield begin, fields
            begin = reader.line_num + 1
    except csv.Error as error:
        fix = 'close every quote and double the quotes inside a quoted field ("a ""fine"" film"), or save as .jsonl'
        problems.append(Problem(f"the record that begins here cannot be read: {error}", f"{path}:{begin}", fix=fix))


def _swallowed(fields: Sequence[str], delimiter: str, where: str) -> list[Problem]:
    """Returns a problem where a quote runs over whole rows of a TSV file, whose texts may begin with one."""
    if delimiter != "\t" or not any("\t" in field and "\n" in field for field in fields):
        return []
    fix = 'double every quote inside a text and put the text in quotes ("""so"" he said"), or save as .jsonl'
    return [Problem("a quote that opens here closes rows later, and makes one field of them", where, fix=fix)]


def _repeated_columns(names: Sequence[str], where: str) -> list[Problem]:
    return [
        Problem(f"{count} columns are named {name!r}", where, "every column name once", "rename or remove one")
        for name, count in Counter(names).items()
        if count > 1
    ]


def _not_an_object(values: Any, where: str) -> list[Problem]:
    if isinstance(values, dict):
        return []
    fix = "write one object a row; in a .jsonl file one a line"
    return [Problem(f"the row is {_kind(values)}, not an object", where, f"an object, such as {OBJECT_EXAMPLE}", fix)]


def _broken_json(error: Exception, path: Path, line: int | None = None) -> Problem:
    """Describes what the JSON parser stumbled over; ``line`` is that of a .jsonl file."""
    place, reason = str(path), "nested too deeply" if isinstance(error, RecursionError) else str(error)
    if isinstance(error, json.JSONDecodeError):
        place, reason = f"{path}:{line or error.lineno}:{error.colno}", error.msg
    elif line:
        place = f"{path}:{line}"
    fix = "repair this place"
    if line is None and reason == "Extra data":
        fix = "a file with one object a line is named .jsonl; otherwise put the objects into one list"
    return Problem(f"the JSON is broken: {reason}", place, f"JSON, such as {OBJECT_EXAMPLE}", fix)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
