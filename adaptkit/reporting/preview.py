"""What the model will see, for a person to look at before anything trains."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from random import Random
from typing import Any

from adaptkit.task import Splits, Task
from adaptkit.training.preparation import Preparation, lengths

SHOWN_CHARACTERS = 1200
INDENT = "  | "


def preview_lines(task: Task[Any], splits: Splits, prepared: Preparation, *, examples: int = 1) -> list[str]:
    """Returns lines about the rows: their format, number, lengths and labels, and examples with the loss mask.

    Args:
        task: Has been prepared.
        splits: The rows, as they were read.
        prepared: The rows, as the model reads them.
        examples: How many training rows are shown as the model reads them.
    """
    return [
        _rows_line(splits),
        _lengths_line(task, prepared),
        *task.facts(),
        *(f"note: {note}" for note in task.notes),
        *_examples(task, prepared, examples),
    ]


def _rows_line(splits: Splits) -> str:
    named = {"training": splits.train, "evaluation": splits.evaluation, "test": splits.test}
    rows = ", ".join(f"{len(rows):,} {name}" for name, rows in named.items() if rows)
    return f"rows: {rows}; format {', '.join(splits.formats) or 'native'}"


def _lengths_line(task: Task[Any], prepared: Preparation) -> str:
    figures = ", ".join(f"{name} {tokens:,}" for name, tokens in lengths(task, prepared.train).items())
    many = len(prepared.train)
    return f"sequences: {many:,} to train on; tokens: {figures} (limit {prepared.max_length:,})"


def _examples(task: Task[Any], prepared: Preparation, examples: int) -> list[str]:
    lines: list[str] = []
    for number in _spread(len(prepared.train), examples):
        feature = task.vary(prepared.train[number], Random("preview"))
        pieces = task.preview(feature, prepared.source.tokenizer)
        mask = "; the loss falls on ⟦ ⟧" if any(learned for _, learned in pieces) else ""
        lines.append(f"as the model reads it, sequence {number + 1:,}{mask}:")
        lines.append(textwrap.indent(_marked(pieces), INDENT, lambda line: True))
    return lines


def _spread(features: int, count: int) -> list[int]:
    """Returns the numbers of some features from all over the data."""
    count = min(count, features)
    return [index * features // count for index in range(count)]


def _marked(pieces: Sequence[tuple[str, bool]]) -> str:
    """Joins pieces, the learned ones in brackets, and cuts what is too long to read in its middle."""
    text = "".join(f"⟦{piece}⟧" if learned else piece for piece, learned in pieces)
    if len(text) <= SHOWN_CHARACTERS:
        return text
    half = SHOWN_CHARACTERS // 2
    return f"{text[:half]} … {len(text) - 2 * half:,} characters … {text[-half:]}"
