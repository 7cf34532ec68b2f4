"""Evaluation that leaves no trace: no logits are kept, no random number is drawn, the model goes on as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adaptkit.data.batching import evaluation_batches
from adaptkit.task import Features
from adaptkit.training.batches import collate
from adaptkit.training.loop import move
from adaptkit.training.rng import preserved_rng

if TYPE_CHECKING:
    from adaptkit.models.precision import Numerics
    from adaptkit.task import Task


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
) -> dict[str, float]:
    """Returns the task's figures over all rows, by name without a prefix."""
    metrics = task.metrics()
    metrics.expect(len(features))
    with inference(model, numerics):
        for _, batch in ordered_batches(task, features, tokenizer, numerics, micro_batch_tokens):
            metrics.update(model, batch)
    return metrics.compute()


def ordered_batches(
    task: Task[Any], features: Sequence[Features], tokenizer: Any, numerics: Numerics, micro_batch_tokens: int
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yields the rows of a batch and the batch, longest rows first, so that what does not fit fails at once."""
    lengths = [task.length(row) for row in features]
    for rows in evaluation_batches(lengths, micro_batch_tokens):
        varied = [task.vary(features[index], random.Random(f"evaluation/{index}")) for index in rows]
        yield rows, move(collate(task, varied, tokenizer), numerics.device)
