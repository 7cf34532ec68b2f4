"""Sentences of tagged tokens: a token a line, its columns beside it, an empty line after each sentence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adaptkit.data.problems import data_error
from adaptkit.data.text import decoded
from adaptkit.errors import Problem
from adaptkit.task import Row

DOCUMENT = re.compile(r"-DOCSTART-|# newdoc\b")
CONLLU_FIELDS = 10
# How comments say something of a sentence: # sent_id = 7
KEY_AND_VALUE = re.compile(r"# \S+ = ")
NO_WORD = re.compile(r"\d+[-.]\d+")


@dataclass(frozen=True)
class _Line:
    number: int
    fields: list[str]


@dataclass(frozen=True)
class _Sentence:
    lines: list[_Line]
    document: str


def read_conll(path: Path) -> list[Row]:
    """Reads CoNLL's columns, cut at tabs or else at spaces: the token comes first, its tag last.

    Lines that begin with ``# `` in front of a sentence are comments, unless they have the fields and a tag of a word.

    Returns:
        A row a sentence: ``tokens``, ``tags`` unless the file has tokens only, and ``document``, by which the
        sentences between two ``-DOCSTART-`` lines belong together.

    Raises:
        DataError: One problem for each line that has not as many fields as most have.
    """
    sentences = _sentences(path, _begins_with_a_sharp)
    widths = Counter(len(line.fields) for sentence in sentences for line in sentence.lines)
    width = max(widths, key=lambda width: (widths[width], width), default=0)
    tags = {line.fields[-1] for sentence in sentences for line in sentence.lines}
    sentences = _sentences(path, lambda line: _begins_with_a_sharp(line) and not _is_tagged_sharp(line, width, tags))
    return _rows(path, sentences, width, {"tokens": 0, "tags": -1} if width > 1 else {"tokens": 0})


def read_conllu(path: Path) -> list[Row]:
    """Reads CoNLL-U: ``tokens`` are its forms, ``tags`` the universal parts of speech, ``xpos`` the language's own.

    Ranges of words (``3-4``) and empty nodes (``3.1``) are left out. https://universaldependencies.org/format.html

    Raises:
        DataError: One problem for each line that has not ten fields.
    """
    sentences = [
        _Sentence([line for line in sentence.lines if not NO_WORD.fullmatch(line.fields[0])], sentence.document)
        for sentence in _sentences(path, lambda line: line.startswith("#"))
    ]
    return _rows(path, sentences, CONLLU_FIELDS, {"tokens": 1, "tags": 3, "xpos": 4})


def _rows(path: Path, sentences: Sequence[_Sentence], width: int, columns: Mapping[str, int]) -> list[Row]:
    problems = [
        Problem(
            f"the line has {len(line.fields)} field(s), {line.fields[0]!r} the first",
            f"{path}:{line.number}",
            f"{width} fields, as the others have",
            "complete the line; an empty line ends a sentence",
        )
        for sentence in sentences
        for line in sentence.lines
        if len(line.fields) != width
    ]
    if problems:
        raise data_error(problems)
    rows = []
    for sentence in sentences:
        if sentence.lines:
            values = {name: [line.fields[field] for line in sentence.lines] for name, field in columns.items()}
            rows.append(Row({**values, "document": sentence.document}, f"{path}:{sentence.lines[0].number}"))
    return rows


def _begins_with_a_sharp(line: str) -> bool:
    return line.startswith("# ")


def _is_tagged_sharp(line: str, width: int, tags: Container[str]) -> bool:
    """Returns whether a line is the word ``#`` at the begin of a sentence, and no comment: its last field tells.

    Args:
        line: Begins with ``# ``.
        width: Fields of a line.
        tags: Last fields of the lines of which it is known that they are words.
    """
    fields = _fields(line)
    return len(fields) == width and fields[-1] in tags and not KEY_AND_VALUE.match(line)


def _sentences(path: Path, is_comment: Callable[[str], bool]) -> list[_Sentence]:
    """Cuts a file into sentences; comments may stand between them only, so that a token may be ``#``."""
    documents, document = 0, path.name
    sentences = [_Sentence([], document)]
    for number, line in enumerate(decoded(path).split("\n"), 1):
        inside = bool(sentences[-1].lines)
        if DOCUMENT.match(line):
            documents += 1
            document = f"{path.name}, document {documents}"
            sentences.append(_Sentence([], document))
        elif not line.strip():
            sentences.append(_Sentence([], document))
        elif inside or not is_comment(line):
            sentences[-1].lines.append(_Line(number, _fields(line)))
    return sentences


def _fields(line: str) -> list[str]:
    stripped = line.strip("\r\n ")
    return stripped.split("\t") if "\t" in stripped else re.split(" +", stripped)
