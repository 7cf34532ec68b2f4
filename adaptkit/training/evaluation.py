"""Evaluation that leaves no trace: no logits are kept, no random number is drawn, the model goes on as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


def evaluate(
    model: nn.Module,
    task: Task[Any],
    features: Sequence[Features],
    tokenizer: Any,
    numerics: Numerics,
    micro_batch_tokens: int,
    shrunk: Callable[[int], None] = lambda tokens: None,
    make_room: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Returns the task's figures over all rows, by name without a prefix.

    Args:
        model: What batches go through.
        task: Of the run.
        features: The rows.
        tokenizer: Of the base.
        numerics: How the model computes.
        micro_batch_tokens: Padded tokens of a batch at the most. Where one does not fit into memory, the evaluation
            begins again with batches of half of its size.
        shrunk: Is told what fits, when that is less.
        make_room: Frees memory that is not needed now, and says whether there was any; asked before batches are cut.

    Raises:
        FitError: A single row does not fit into memory.
    """
    return _collected(model, task, features, tokenizer, numerics, micro_batch_tokens, shrunk, make_room).compute()


def rehearse_evaluation(
    model: nn.Module,
    task: Task[Any],
    features: Sequence[Features],
    tokenizer: Any,
    numerics: Numerics,
    micro_batch_tokens: int,
    shrunk: Callable[[int], None],
    make_room: Callable[[], bool],
) -> None:
    """Takes the longest batch of an evaluation through the model, so that what does not fit shows at once.

    The arguments are those of `evaluate`.
    """
    longest = evaluation_batches([task.length(row) for row in features], micro_batch_tokens)[0]
    rows = [features[index] for index in longest]
    _collected(model, task, rows, tokenizer, numerics, micro_batch_tokens, shrunk, make_room)


def _collected(
    model: nn.Module,
    task: Task[Any],
    features: Sequence[Features],
    tokenizer: Any,
    numerics: Numerics,
    tokens: int,
    shrunk: Callable[[int], None],
    make_room: Callable[[], bool],
) -> Metrics:
    lengths = [task.length(row) for row in features]
    begun: list[list[int]] = []

    def collect() -> Metrics:
        metrics = task.metrics()
        metrics.expect(len(features))
        for rows in evaluation_batches(lengths, tokens):
            begun.append(rows)
            metrics.update(model, _batch(task, features, rows, tokenizer, numerics))
        return metrics

    with inference(model, numerics):
        # From the start, for a collector that was interrupted may have counted a part of the batch.
        while (metrics := attempt(collect)) is None:
            if make_room():
                continue
            tokens = _half(begun[-1], lengths)
            shrunk(tokens)
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
