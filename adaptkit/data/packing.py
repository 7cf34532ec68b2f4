"""Several rows in one sequence, in place of padding.

What makes them blind to each other are positions that begin at 0 with each row: where a batch has no attention
mask, transformers builds from them a causal mask in which a token sees its own row alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptkit.task import IGNORE_INDEX, Features

if TYPE_CHECKING:
    from torch import Tensor


def pack(rows: Sequence[Features], length: int) -> list[Features]:
    """Puts rows into as few sequences as first-fit-decreasing finds (at most 11/9 of the fewest possible).

    Args:
        rows: Each with ``input_ids`` and as many ``labels``.
        length: Tokens of a sequence at the most; a longer row is one by itself.

    Returns:
        Sequences with ``input_ids``, ``labels`` and ``position_ids``. The first token of each row is predicted
        from nothing and has the label -100.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    return [join([rows[index] for index in members]) for members in bins(lengths, length)]


def bins(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Returns which rows share a sequence, by index: first-fit-decreasing over their lengths in tokens."""
    found: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        size = lengths[row]
        place = next((index for index, left in enumerate(room) if left >= size), None)
        if place is None:
            found.append([row])
            room.append(length - size)
        else:
            found[place].append(row)
            room[place] -= size
    return found


def join(rows: Sequence[Features]) -> Features:
    """Returns rows as one sequence, as `pack` does."""
    return {
        "input_ids": [token for row in rows for token in row["input_ids"]],
        "labels": [label for row in rows for label in (IGNORE_INDEX, *row["labels"][1:])],
        "position_ids": [position for row in rows for position in range(len(row["input_ids"]))],
    }


def collate_packed(sequences: Sequence[Features]) -> dict[str, Tensor]:
    """Pads packed sequences on the right; every padding token is a row of its own that nothing is learned from.

    Returns:
        int64 tensors ``input_ids``, ``labels`` and ``position_ids`` of shape ``(batch, seq)``.
    """
    import torch

    longest = max(len(sequence["input_ids"]) for sequence in sequences)
    padding = {"input_ids": 0, "labels": IGNORE_INDEX, "position_ids": 0}
    return {
        key: torch.tensor([sequence[key] + [value] * (longest - len(sequence[key])) for sequence in sequences])
        for key, value in padding.items()
    }
