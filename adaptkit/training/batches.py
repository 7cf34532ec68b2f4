"""Which rows each optimizer step sees: a pure function of seed and step, so that a resumed run just jumps there."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adaptkit.data.batching import effective_batches, micro_batches
from adaptkit.data.packing import bins, collate_packed, join
from adaptkit.task import Features

if TYPE_CHECKING:
    from torch import Tensor

    from adaptkit.recipe import TrainingSpec
    from adaptkit.task import Task

Batch = dict[str, "Tensor"]
CACHED = "cached_features"
CANDIDATES = 16  # micro-batches of the same size whose labels are counted


def collate(task: Task[Any], rows: Sequence[Features], tokenizer: Any) -> Batch:
    """Pads rows to a batch, and stacks their cached features, shape ``(batch, hidden)``, where they have them."""
    import torch

    batch = task.collate(rows, tokenizer)
    if CACHED in rows[0]:
        batch[CACHED] = torch.stack([row[CACHED] for row in rows])
    return batch


def steps_per_epoch(rows: int, settings: TrainingSpec) -> int:
    """Returns the optimizer steps of one pass over the rows; the last batch of a pass may be short."""
    return math.ceil(rows / settings.effective_batch)


def total_steps(rows: int, settings: TrainingSpec) -> int:
    """Returns the optimizer steps of a whole run."""
    return settings.max_steps or max(1, math.ceil(settings.epochs * steps_per_epoch(rows, settings)))


class TrainingBatches:
    """The micro-batches of every optimizer step.

    Args:
        features: Of every training row.
        task: Collates them.
        tokenizer: Of the base, for padding.
        settings: Batch sizes and seed.
        pack_to: Tokens of a sequence that several rows share, at the most; None: each row is a sequence of its own.

    Attributes:
        tokens: Padded tokens of a micro-batch at the most; less than the recipe's once one did not fit into memory.
    """

    def __init__(
        self,
        features: Sequence[Features],
        task: Task[Any],
        tokenizer: Any,
        settings: TrainingSpec,
        *,
        pack_to: int | None = None,
    ) -> None:
        self.features = features
        self.steps_per_epoch = steps_per_epoch(len(features), settings)
        self.tokens = settings.pass_tokens
        self._lengths = [task.length(row) for row in features]
        self._task, self._tokenizer, self._settings, self._pack_to = task, tokenizer, settings, pack_to
        self._epoch: tuple[int, list[list[int]]] | None = None
        self._searched: tuple[int, int] | None = None

    def at(self, step: int) -> list[Batch]:
        """Returns the micro-batches of optimizer step `step`, counted from 0: a function of it and of `tokens`."""
        return [self._collated(cut, step // self.steps_per_epoch) for cut in self._cuts(step)]

    def passes(self, step: int) -> int:
        """Returns how many micro-batches a step has."""
        return len(self._cuts(step))

    def size(self, step: int, index: int) -> int:
        """Returns the padded tokens of a step's micro-batch, as they are held against `tokens`."""
        return self._size(self._cuts(step)[index])

    def shapes(self, steps: int) -> Counter[tuple[int, int, int]]:
        """Returns how often each shape comes in the first steps: micro-batches of a step, sequences, padded tokens."""
        cuts = (self._cuts(step) for step in range(steps))
        return Counter((len(step), len(cut), self._size(cut)) for step in cuts for cut in step)

    def shrink(self, step: int, index: int) -> bool:
        """Cuts all micro-batches from now on to half of the size of one.

        Args:
            step: Counted from 0.
            index: Of the micro-batch, in its step.

        Returns:
            Whether it is cut: a single row cannot be.
        """
        cut = self._cuts(step)[index]
        if sum(map(len, cut)) == 1:
            return False
        self.tokens = self._size(cut) // 2
        return True

    def longest(self, steps: int) -> tuple[int, int]:
        """Finds the micro-batch with the most padded tokens; of several the one with most that counts (label tokens).

        Args:
            steps: Of the run.

        Returns:
            Its step, and its place there.
        """
        if (steps, self.tokens) != self._searched:
            self._longest = max(self._candidates(steps), key=self._count)
            self._searched = (steps, self.tokens)
        return self._longest

    def _candidates(self, steps: int) -> list[tuple[int, int]]:
        """Returns the micro-batches with the most padded tokens, the first few of them."""
        most, found = 0, [(0, 0)]
        bound = max(self.tokens, max(self._lengths))  # what none can exceed
        for step in range(steps):
            for index, cut in enumerate(self._cuts(step)):
                size = self._size(cut)
                most, found = (size, []) if size > most else (most, found)
                if size == most:
                    found.append((step, index))
            if most == bound and len(found) >= CANDIDATES:
                break
        return found[:CANDIDATES]

    def _count(self, place: tuple[int, int]) -> float:
        step, index = place
        return self._task.count(self.at(step)[index])

    def _cuts(self, step: int) -> list[list[list[int]]]:
        """Returns the micro-batches of a step: sequences, each of one row or, packed, of several."""
        rows = self.rows_at(step)
        if self._pack_to is None:
            sequences = [[row] for row in rows]
        else:
            packed = bins([self._lengths[row] for row in rows], min(self._pack_to, self.tokens))
            sequences = [[rows[index] for index in members] for members in packed]
        lengths = [self._length(sequence) for sequence in sequences]
        cuts = micro_batches(range(len(sequences)), lengths, self.tokens)
        return [[sequences[index] for index in cut] for cut in cuts]

    def _length(self, sequence: list[int]) -> int:
        return sum(self._lengths[row] for row in sequence)

    def _size(self, cut: list[list[int]]) -> int:
        return len(cut) * max(map(self._length, cut))

    def _collated(self, cut: list[list[int]], epoch: int) -> Batch:
        sequences = [[self._varied(row, epoch) for row in sequence] for sequence in cut]
        if self._pack_to is not None:
            return collate_packed([join(rows) for rows in sequences])
        return collate(self._task, [row for (row,) in sequences], self._tokenizer)

    def _varied(self, index: int, epoch: int) -> Features:
        """Returns a row as it is seen in an epoch."""
        return self._task.vary(self.features[index], random.Random(f"{self._settings.seed}/{epoch}/{index}"))

    def rows_at(self, step: int) -> list[int]:
        """Returns the rows of optimizer step `step`."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            order = effective_batches(
                self._lengths,
                effective_batch=self._settings.effective_batch,
                seed=self._settings.seed,
                epoch=epoch,
            )
            self._epoch = (epoch, order)
        return self._epoch[1][index]
