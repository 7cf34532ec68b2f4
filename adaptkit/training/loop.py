"""The training loop: the only place that steps.

A generator of step records. Whoever drives it reports, evaluates, saves or stops between two records;
nothing of that is in here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from adaptkit.errors import TrainingError
from adaptkit.hookspecs import StepRecord

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer

    from adaptkit.models.precision import Numerics
    from adaptkit.strategy import Strategy
    from adaptkit.task import Task
    from adaptkit.training.optim import LearningRate
    from adaptkit.training.saved_state import Unsaved

STEADIER = "lower training.learning_rate, lengthen training.warmup, or set training.compute to fp32"


class Batches(Protocol):
    """Where micro-batches come from."""

    steps_per_epoch: int

    def at(self, step: int) -> list[dict[str, Tensor]]:
        """Returns the micro-batches of an optimizer step."""


@dataclass
class Job:
    """Everything that a step touches.

    Attributes:
        model: The adapted model, as strategies see it.
        wrapped: What batches go through: the model in the wrapper of accelerate, or with cached features.
        step: Optimizer steps done.
        checked: Names of the trainable tensors that are known to get a gradient.
        unsaved: What must stay as it is, because it is not saved; None: not watched.
    """

    model: nn.Module
    wrapped: nn.Module
    strategy: Strategy[Any]
    task: Task[Any]
    batches: Batches
    optimizer: Optimizer
    scheduler: LearningRate
    accelerator: Accelerator
    numerics: Numerics
    total_steps: int
    max_grad_norm: float | None
    step: int = 0
    checked: set[str] = field(default_factory=set)
    unsaved: Unsaved | None = None

    def trainable(self) -> dict[str, nn.Parameter]:
        """Returns what trains at present, by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def check_unsaved(self) -> None:
        """Makes sure that nothing has changed that is not saved.

        Raises:
            PluginError: The strategy has written into what it neither trains nor saves.
        """
        if self.unsaved is not None:
            self.unsaved.check(self.model)


def training_steps(job: Job) -> Iterator[StepRecord]:
    """Trains to the last step, one record per optimizer step.

    Raises:
        TrainingError: The run cannot learn: nothing is counted, a trainable tensor gets no gradient, or the
            loss or the gradient is not finite. The model is then as it was before the step.
        PluginError: The first step has changed what the strategy neither trains nor saves.
    """
    first = job.step + 1
    while job.step < job.total_steps:
        record = train_step(job)
        if job.step == first:
            job.check_unsaved()
        yield record


def train_step(job: Job) -> StepRecord:
    """Takes one optimizer step over the micro-batches of one effective batch.

    The summed losses are divided by the count of the whole effective batch, so that no cut into
    micro-batches changes the gradient.
    """
    started = perf_counter()
    job.strategy.before_step(job.model, job.step)
    micro_batches = job.batches.at(job.step)
    count = sum(job.task.count(batch) for batch in micro_batches)
    if not count > 0:
        raise TrainingError(
            f"the batch of step {job.step + 1} has nothing to learn from: no label counts in it",
            fix="check the labels, and data.max_length, which may cut them away",
        )
    loss = accumulate_gradient(job, micro_batches, count)
    trainable = job.trainable()
    _check_gradients(job, trainable)
    norm = _gradient_norm(job, trainable)
    _check_finite(job, loss, norm)
    learning_rate = float(job.optimizer.param_groups[0]["lr"])
    job.optimizer.step()
    job.strategy.after_step(job.model, job.step)
    job.optimizer.zero_grad(set_to_none=True)
    job.scheduler.step()
    job.step += 1
    return StepRecord(
        step=job.step,
        epoch=job.step / job.batches.steps_per_epoch,
        loss=loss,
        count=count,
        tokens=sum(_tokens(batch) for batch in micro_batches),
        learning_rate=learning_rate,
        grad_norm=norm,
        seconds=perf_counter() - started,
    )


def move(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Returns a batch on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _tokens(batch: Mapping[str, Tensor]) -> int:
    """Returns how many tokens of a batch are not padding; packed sequences have hardly any."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return batch["input_ids"].numel() if "input_ids" in batch else 0


def accumulate_gradient(job: Job, micro_batches: list[dict[str, Tensor]], count: float) -> float:
    """Accumulates the gradient of the whole effective batch and returns its loss."""
    total = torch.zeros((), device=job.accelerator.device)
    for batch in micro_batches:
        with job.numerics.autocast():
            part = job.task.loss(job.wrapped, move(batch, job.accelerator.device))
        loss = part.total / count
        if part.extra is not None:
            loss = loss + part.extra / len(micro_batches)
        job.accelerator.backward(loss)
        total += loss.detach()
    extra = job.strategy.extra_loss(job.model)
    if extra is not None:
        job.accelerator.backward(extra)
        total += extra.detach()
    return float(total)


def _gradient_norm(job: Job, trainable: Mapping[str, nn.Parameter]) -> float:
    """Returns the global gradient norm, and clips to it where the recipe says so."""
    limit = math.inf if job.max_grad_norm is None else job.max_grad_norm
    return float(torch.nn.utils.clip_grad_norm_(list(trainable.values()), limit))


def _check_gradients(job: Job, trainable: Mapping[str, nn.Parameter]) -> None:
    """Makes sure, the first time that a tensor trains, that the loss depends on it."""
    unchecked = trainable.keys() - job.checked
    without = sorted(name for name in unchecked if trainable[name].grad is None)
    job.checked |= unchecked
    if without:
        raise TrainingError(
            f"{len(without)} trainable tensor(s) get no gradient: {', '.join(without[:5])}"
            + (" …" if len(without) > 5 else ""),
            where=f"strategy {job.strategy.name!r}",
            fix="freeze what the loss does not depend on, or connect it; a strategy's adapt() decides what trains",
        )


def _check_finite(job: Job, loss: float, norm: float) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    raise TrainingError(
        f"{'the loss' if not math.isfinite(loss) else 'the gradient'} is not finite at step {job.step + 1}: "
        f"loss {loss}, gradient norm {norm}",
        fix=f"{STEADIER}; the last checkpoint is from before this step",
    )
