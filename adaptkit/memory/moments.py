"""The moments of a run at one of which its memory is highest, each as a trace sees it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptkit.data.batching import evaluation_batches
from adaptkit.memory.generation import writing_parts
from adaptkit.memory.trace import ACTIVATIONS
from adaptkit.training.batches import collate

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from adaptkit.memory.trace import Trace
    from adaptkit.memory.tracker import Parts
    from adaptkit.models.precision import Numerics
    from adaptkit.recipe import TrainingSpec
    from adaptkit.task import Features, Task
    from adaptkit.training.preparation import Preparation


def training_moments(
    trace: Trace,
    settings: TrainingSpec,
    task: Task[Any],
    make: Callable[[], Optimizer],
    passes: Sequence[Mapping[str, Tensor]],
    index: int,
    *,
    cached: bool,
) -> dict[str, Parts]:
    """Returns what there is at the peak of the optimizer's step and of the longest pass of its step.

    Args:
        trace: Is at its beginning; no gradients stay.
        settings: Of the recipe.
        task: Gives the loss.
        make: The optimizer.
        passes: Of the step.
        index: The longest of them.
        cached: Whether the frozen part runs once beforehand.
    """
    moments = {}
    states = trace.optimizer_step(make, settings.max_grad_norm)
    if not settings.optimizer_in_backward:
        moments["the optimizer's step"] = states
    if settings.optimizer_in_backward or len(passes) == 1:
        trace.drop_gradients()
    if cached:
        moments["caching frozen features"] = trace.inference_pass(task.loss, passes[index])
    else:
        keeps = not settings.optimizer_in_backward
        moments["forward and backward"] = trace.training_pass(task, passes[index], keeps_gradients=keeps)
    trace.drop_gradients()
    return moments


def evaluation_moments(
    trace: Trace, task: Task[Any], prepared: Preparation, tokens: int, numerics: Numerics, visiting: int
) -> dict[str, Parts]:
    """Returns what there is at the peak of the longest evaluation batch, and of the texts that are written for it."""
    batch = collate(task, _evaluation_rows(task, prepared, tokens), prepared.source.tokenizer)
    moments = {"evaluation": trace.inference_pass(task.loss, batch)}
    if task.capabilities.generates:
        moments["writing texts"] = writing_parts(moments["evaluation"], task, prepared, batch, numerics)
        moments["writing texts"][ACTIVATIONS] += visiting
    return moments


def _evaluation_rows(task: Task[Any], prepared: Preparation, tokens: int) -> list[Features]:
    """Returns the rows of the longest batch of an evaluation."""
    lengths = [task.length(row) for row in prepared.evaluation]
    return [
        task.vary(prepared.evaluation[index], random.Random(f"evaluation/{index}"))
        for index in evaluation_batches(lengths, tokens)[0]
    ]
