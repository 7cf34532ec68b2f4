"""Evaluation that leaves no trace: no logits are kept, no random number is drawn, the model goes on as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from adaptkit.data.batching import evaluation_batches, micro_batches
from adaptkit.task import Features, Metrics
from adaptkit.training.batches import collate
from adaptkit.training.gradient import move
from adaptkit.training.rng import preserved_rng
from adaptkit.training.splitting import attempt, does_not_fit

if TYPE_CHECKING:
    from adaptkit.models.precision import Numerics
    from adaptkit.task import Task

T = TypeVar("T")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switches every module to eval mode within the context, and each back to the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def inference(model: nn.Module, numerics: Numerics) -> Iterator[None]:
    """The context of a forward pass that leaves no trace."""
    with eval_mode(model), preserved_rng(), torch.no_grad(), numerics.autocast():
        yield


@dataclass
class Evaluation:
    """What a model is measured on, and how.

    Attributes:
        model: What batches go through.
        task: Of the run.
        features: The rows.
        tokenizer: Of the base.
        numerics: How the model computes.
        micro_batch_tokens: Padded tokens of a batch at the most. Where one does not fit into memory, the evaluation
            begins again with batches of half of its size.
        shrunk: Is told what fits, when that is less.
        make_room: Frees memory that is not needed now, and says whether there was any; asked before batches are cut.
    """

    model: nn.Module
    task: Task[Any]
    features: Sequence[Features]
    tokenizer: Any
    numerics: Numerics
    micro_batch_tokens: int
    shrunk: Callable[[int], None] = lambda tokens: None
    make_room: Callable[[], bool] = lambda: False

    def figures(self) -> dict[str, float]:
        """Returns the task's figures over all rows, by name without a prefix.

        Raises:
            FitError: A single row does not fit into memory.
        """
        return self._collected(self.features).compute()

    def rehearse(self) -> None:
        """Takes the longest batch through the model, so that what does not fit shows at once.

        Raises:
            FitError: A single row does not fit into memory.
        """
        lengths = [self.task.length(row) for row in self.features]
        longest = evaluation_batches(lengths, self.micro_batch_tokens)[0]
        self._collected([self.features[index] for index in longest])

    def _collected(self, features: Sequence[Features]) -> Metrics:
        lengths, tokens = [self.task.length(row) for row in features], self.micro_batch_tokens
        begun: list[list[int]] = []

        def collect() -> Metrics:
            metrics = self.task.metrics()
            metrics.expect(len(features))
            for rows in evaluation_batches(lengths, tokens):
                begun.append(rows)
                metrics.update(self.model, _batch(self.task, features, rows, self.tokenizer, self.numerics))
            return metrics

        with inference(self.model, self.numerics):
            # From the start, for a collector that was interrupted may have counted a part of the batch.
            while (metrics := attempt(collect)) is None:
                if self.make_room():
                    continue
                tokens = _half(begun[-1], lengths)
                self.shrunk(tokens)
        return metrics


def each_batch(
    function: Callable[[dict[str, Tensor]], T],
    task: Task[Any],
    features: Sequence[Features],
    tokenizer: Any,
    numerics: Numerics,
    micro_batch_tokens: int,
) -> Iterator[tuple[list[int], T]]:
    """Yields the rows of each batch, longest rows first, and what a function makes of the batch.

    A batch that does not fit into memory is cut, and those behind it are no larger.

    Raises:
        FitError: A single row does not fit into memory.
    """
    lengths = [task.length(row) for row in features]
    waiting = evaluation_batches(lengths, micro_batch_tokens)

    def asked(rows: list[int]) -> T:
        return function(_batch(task, features, rows, tokenizer, numerics))

    while waiting:
        rows = waiting[0]
        result = attempt(partial(asked, rows))
        if result is None:
            waiting = micro_batches(chain.from_iterable(waiting), lengths, _half(rows, lengths))
        else:
            del waiting[0]
            yield rows, result


def ordered_batches(
    task: Task[Any], features: Sequence[Features], tokenizer: Any, numerics: Numerics, micro_batch_tokens: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yields the rows of a batch and the batch, longest rows first, so that what does not fit fails at once."""
    for rows in evaluation_batches([task.length(row) for row in features], micro_batch_tokens):
        yield rows, _batch(task, features, rows, tokenizer, numerics)


def _batch(
    task: Task[Any], features: Sequence[Features], rows: Sequence[int], tokenizer: Any, numerics: Numerics
) -> dict[str, Tensor]:
    varied = [task.vary(features[index], random.Random(f"evaluation/{index}")) for index in rows]
    return move(collate(task, varied, tokenizer), numerics.device)


def _half(rows: Sequence[int], lengths: Sequence[int]) -> int:
    """Returns half of the padded tokens of a batch that did not fit.

    Raises:
        FitError: It is a single row.
    """
    longest = max(lengths[row] for row in rows)
    if len(rows) == 1:
        raise does_not_fit(f"a row of {longest:,} tokens")
    return len(rows) * longest // 2
