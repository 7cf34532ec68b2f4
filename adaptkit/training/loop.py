"""The training loop: the only place that steps.

A generator of step records. Whoever drives it reports, evaluates, saves or stops between two records;
nothing of that is in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from adaptkit.errors import TrainingError
from adaptkit.hookspecs import StepRecord
from adaptkit.training.finite import check_finite
from adaptkit.training.gradient import step_gradient
from adaptkit.training.in_backward import InBackward
from adaptkit.training.rehearsal import rehearse
from adaptkit.training.splitting import Beginning

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer

    from adaptkit.models.precision import Numerics
    from adaptkit.strategy import Strategy
    from adaptkit.task import Task
    from adaptkit.training.batches import Batch
    from adaptkit.training.graphs import Recorder
    from adaptkit.training.optim import LearningRate
    from adaptkit.training.saved_state import Unsaved


class Batches(Protocol):
    """Where micro-batches come from.

    Attributes:
        tokens: Padded tokens of a micro-batch at the most.
    """

    steps_per_epoch: int
    tokens: int

    def at(self, step: int) -> list[Batch]:
        """Returns the micro-batches of an optimizer step."""

    def size(self, step: int, index: int) -> int:
        """Returns the padded tokens of a step's micro-batch."""

    def shrink(self, step: int, index: int) -> bool:
        """Cuts all micro-batches to half of the size of one; False: it cannot be cut."""

    def longest(self, steps: int) -> tuple[int, int]:
        """Returns step and index of the longest micro-batch of a run of so many steps."""


def _silent(line: str) -> None:
    """Takes a line that nobody reads."""


@dataclass
class Job:
    """Everything that a step touches.

    Attributes:
        model: The adapted model, as strategies see it.
        wrapped: What batches go through: the model in the wrapper of accelerate, or with cached features.
        step: Optimizer steps done.
        checked: Names of the trainable tensors that are known to get a gradient.
        unsaved: What must stay as it is, because it is not saved; None: not watched.
        rehearsals: How many of the next steps begin with a rehearsal of the longest micro-batch: one, and another when
            the first step has made the optimizer's states.
        tell: Where a line for the person goes.
        beginning: Of the passes of a step.
        recorder: Plays passes back; None: each is taken anew.
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
    rehearsals: int = 0
    tell: Callable[[str], None] = _silent
    recorder: Recorder | None = None

    def __post_init__(self) -> None:
        self.beginning = Beginning(self.model)

    @property
    def in_backward(self) -> InBackward | None:
        """The optimizer, where it steps within the backward pass."""
        return self.optimizer if isinstance(self.optimizer, InBackward) else None

    def has_gradient(self, parameter: nn.Parameter) -> bool:
        """Returns whether the step has given a parameter a gradient."""
        return parameter.grad is not None or (self.in_backward is not None and parameter in self.in_backward.norms)

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
            loss or the gradient is not finite. The model is then as it was before the step (not so where the
            optimizer steps within the backward pass and the gradient alone is not finite).
        FitError: A single row does not fit into memory.
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
    if job.rehearsals:
        job.rehearsals -= 1
        rehearse(job)
    in_backward = job.in_backward
    with in_backward.stepping() if in_backward else nullcontext():
        micro_batches, count, total = step_gradient(job)
    trainable = job.trainable()
    _check_gradients(job, trainable)
    # The one place of a step that waits for the device.
    loss, norm = torch.stack([total, _gradient_norm(job, trainable).to(total)]).tolist()
    check_finite(job.step, loss, norm)
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


def _tokens(batch: Mapping[str, Tensor]) -> int:
    """Returns how many tokens of a batch are not padding; packed sequences have hardly any."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return batch["input_ids"].numel() if "input_ids" in batch else 0


def _gradient_norm(job: Job, trainable: Mapping[str, nn.Parameter]) -> Tensor:
    """Returns the global gradient norm, a scalar on the device, and clips to it where the recipe says so."""
    if job.in_backward is not None:
        return job.in_backward.norm()
    if job.max_grad_norm is None:
        return torch.nn.utils.get_total_norm([p.grad for p in trainable.values() if p.grad is not None])
    return torch.nn.utils.clip_grad_norm_(list(trainable.values()), job.max_grad_norm)


def _check_gradients(job: Job, trainable: Mapping[str, nn.Parameter]) -> None:
    """Makes sure, the first time that a tensor trains, that the loss depends on it."""
    unchecked = trainable.keys() - job.checked
    without = sorted(name for name in unchecked if not job.has_gradient(trainable[name]))
    job.checked |= unchecked
    if without:
        raise TrainingError(
            f"{len(without)} trainable tensor(s) get no gradient: {', '.join(without[:5])}"
            + (" …" if len(without) > 5 else ""),
            where=f"strategy {job.strategy.name!r}",
            fix="freeze what the loss does not depend on, or connect it; a strategy's adapt() decides what trains",
        )
