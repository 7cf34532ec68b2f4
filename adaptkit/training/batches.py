"""Which rows each optimizer step sees: a pure function of seed and step, so that a resumed run just jumps there."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adaptkit.data.batching import effective_batches, micro_batches
from adaptkit.data.packing import collate_packed, pack
from adaptkit.task import Features

if TYPE_CHECKING:
    from torch import Tensor

    from adaptkit.recipe import TrainingSpec
    from adaptkit.task import Task

Batch = dict[str, "Tensor"]
CACHED = "cached_features"


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
        self._lengths = [task.length(row) for row in features]
        self._task, self._tokenizer, self._settings, self._pack_to = task, tokenizer, settings, pack_to
        self._epoch: tuple[int, list[list[int]]] | None = None

    def at(self, step: int) -> list[Batch]:
        """Returns the micro-batches of optimizer step `step`, counted from 0."""
        epoch = step // self.steps_per_epoch
        rows = {index: self._varied(index, epoch) for index in self.rows_at(step)}
        if self._pack_to is not None:
            return self._packed(list(rows.values()), self._pack_to)
        cuts = micro_batches(rows, self._lengths, self._settings.micro_batch_tokens)
        return [collate(self._task, [rows[index] for index in cut], self._tokenizer) for cut in cuts]

    def _varied(self, index: int, epoch: int) -> Features:
        """Returns a row as it is seen in an epoch."""
        return self._task.vary(self.features[index], random.Random(f"{self._settings.seed}/{epoch}/{index}"))

    def _packed(self, rows: Sequence[Features], length: int) -> list[Batch]:
        budget = self._settings.micro_batch_tokens
        sequences = pack(rows, min(length, budget))
        cuts = micro_batches(range(len(sequences)), [len(ids["input_ids"]) for ids in sequences], budget)
        return [collate_packed([sequences[index] for index in cut]) for cut in cuts]

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
