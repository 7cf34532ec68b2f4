"""Which rows share a step, and which of them share a forward pass.

An effective batch is what one optimizer step sees; it is cut into micro-batches that fit a token budget.
Both are pure functions of their arguments: of the lengths, the seed and the epoch, never of the number of
processes, the device or what ran before. A resumed run computes the same lists and jumps into them.

Rows of similar length are put together, because padding is wasted work. That changes which rows meet in
a step, not how often or how likely a row is used: every row comes once per epoch, the order in which full
batches come is uniformly random, and the rows of the short last batch are drawn before any sorting. So
every row is equally likely to be in any given step, and the expected gradient of a step is that of plain
shuffling. What rises is its variance, where length goes with the label; windows bound that: only
rows of one random window are sorted against each other, so the partners of a row change every epoch.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

# In effective batches. Beyond about 50 less padding is hardly gained (HF's length-grouped sampler takes 50 too).
WINDOW = 50
# A window is at most a quarter of an epoch, or the batches of a small data set would be the same in every epoch.
LEAST_WINDOWS = 4


def effective_batches(lengths: Sequence[int], *, effective_batch: int, seed: int, epoch: int) -> list[list[int]]:
    """Returns the row indices of every optimizer step of an epoch.

    Args:
        lengths: Tokens of every row.
        effective_batch: Rows a step.
        seed: Of the run.
        epoch: Counted from 0.

    Returns:
        Batches of ``effective_batch`` rows; the last one holds the remainder, if there is one.
    """
    # A string seeds through sha512, so that neighbouring seeds and epochs have unrelated orders.
    generator = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    generator.shuffle(order)
    full = len(order) // effective_batch
    remainder = order[full * effective_batch :]
    window = effective_batch * max(1, min(WINDOW, full // LEAST_WINDOWS))
    batches = []
    for begin in range(0, full * effective_batch, window):
        rows = sorted(order[begin : min(begin + window, full * effective_batch)], key=lengths.__getitem__)
        batches += _cut(rows, effective_batch)
    generator.shuffle(batches)
    return [*batches, remainder] if remainder else batches


def micro_batches(indices: Iterable[int], lengths: Sequence[int], micro_batch_tokens: int) -> list[list[int]]:
    """Cuts rows into forward passes whose padded size, rows times the longest, keeps to a budget.

    Args:
        indices: Rows of one effective batch.
        lengths: Tokens of every row of the data, by index.
        micro_batch_tokens: Padded tokens of a micro-batch at the most; a single longer row is one by itself.

    Returns:
        Every index once, longest rows first: what does not fit into memory shows in the first pass.
    """
    rows = sorted(indices, key=lengths.__getitem__, reverse=True)
    batches, begin = [], 0
    while begin < len(rows):
        size = max(1, micro_batch_tokens // max(1, lengths[rows[begin]]))
        batches.append(rows[begin : begin + size])
        begin += size
    return batches


def evaluation_batches(lengths: Sequence[int], micro_batch_tokens: int) -> list[list[int]]:
    """Returns every row once, longest first, cut as `micro_batches` does."""
    return micro_batches(range(len(lengths)), lengths, micro_batch_tokens)


def _cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]
