"""The gradient of one effective batch, in as many passes as memory needs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adaptkit.errors import TrainingError
from adaptkit.training.finite import check_finite
from adaptkit.training.splitting import DoesNotFitError, attempt, does_not_fit

if TYPE_CHECKING:
    from adaptkit.training.batches import Batch
    from adaptkit.training.job import Job


def move(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Returns a batch on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in _page_locked(batch, device).items()}


def _page_locked(batch: Mapping[str, Tensor], device: torch.device) -> Mapping[str, Tensor]:
    """Returns a batch from where a GPU can copy it while it works: a copy from pageable memory waits for the GPU."""
    if device.type != "cuda":
        return batch
    return {
        name: tensor if tensor.is_cuda or tensor.is_pinned() else tensor.pin_memory() for name, tensor in batch.items()
    }


def step_gradient(job: Job) -> tuple[list[Batch], float, Tensor]:
    """Accumulates the gradient of the next step; a micro-batch that does not fit is cut, and the step begins again.

    The effective batch stays the same, and so does the gradient, but for what dropout draws; from then on no
    micro-batch of the run is larger.

    Returns:
        The micro-batches, what their losses were divided by, and the loss.

    Raises:
        TrainingError: Nothing is counted.
        FitError: A single row does not fit.
    """
    job.beginning.keep()
    while True:
        micro_batches = job.batches.at(job.step)
        count = sum(job.task.count(batch) for batch in micro_batches)
        if not count > 0:
            raise TrainingError(
                f"the batch of step {job.step + 1} has nothing to learn from: no label counts in it",
                fix="check the labels, and data.max_length, which may cut them away",
            )
        try:
            loss = accumulate_gradient(job, micro_batches, count)
        except DoesNotFitError as error:
            failed = error.index
        else:
            job.beginning.passed()
            return micro_batches, count, loss
        job.beginning.restore()
        if job.recorder is None or not job.recorder.stop():  # Recordings hold memory: once more without.
            shrink(job, job.step, failed)


def shrink(job: Job, step: int, index: int) -> None:
    """Cuts the micro-batches of a run to half of one that did not fit.

    Raises:
        FitError: It is a single row, or the optimizer's step is part of the pass.
    """
    size = job.batches.size(step, index)
    if job.in_backward is not None:
        raise does_not_fit(
            f"a forward pass of {size:,} tokens, which training.optimizer_in_backward keeps from being cut,",
            where=f"step {step + 1}",
        )
    if not job.batches.shrink(step, index):
        raise does_not_fit(f"a row of {size:,} tokens", where=f"step {step + 1}")
    job.tell(
        f"a forward pass of {size:,} tokens does not fit into memory: from step {job.step + 1} on at most "
        f"{job.batches.tokens:,}, the effective batch as before"
    )


def accumulate_gradient(job: Job, micro_batches: list[Batch], count: float) -> Tensor:
    """Accumulates the gradient of a whole effective batch.

    Returns:
        Its loss, a scalar on the device: to read it waits for the device.

    Raises:
        DoesNotFitError: A micro-batch ran out of memory; those before it have left their gradient.
    """
    total = accumulate_passes(job, micro_batches, count)
    extra = job.strategy.extra_loss(job.model)
    if extra is not None:
        job.accelerator.backward(extra)
        total += extra.detach()
    return total


def accumulate_passes(job: Job, micro_batches: list[Batch], count: float) -> Tensor:
    """Does so without the strategy's own loss."""
    total = torch.zeros((), device=job.accelerator.device)
    for index, batch in enumerate(micro_batches):
        loss = attempt(partial(_pass, job, batch, count, len(micro_batches)))
        if loss is None:
            raise DoesNotFitError(index)
        total += loss
    return total


def _pass(job: Job, batch: Batch, count: float, passes: int) -> Tensor:
    """Takes one micro-batch through the model and back, and returns its share of the loss."""
    ready = _page_locked(job.task.locate(batch), job.accelerator.device)
    if job.recorder is not None:
        played = job.recorder.run(ready, count, passes, lambda inputs, divisor: _take(job, inputs, divisor, passes))
        if played is not None:
            return played
    device = job.accelerator.device
    # A GPU multiplies by the reciprocal of a number of the host: other bits than of a pass that is played back.
    divisor = torch.full((), count, device=device) if device.type == "cuda" else count
    return _take(job, move(ready, device), divisor, passes)


def _take(job: Job, batch: Batch, count: float | Tensor, passes: int) -> Tensor:
    """Takes a micro-batch on the device through the model and back."""
    with job.numerics.autocast():
        part = job.task.loss(job.wrapped, batch)
    loss = part.total / count
    if part.extra is not None:
        loss = loss + part.extra / passes
    if job.in_backward is not None and job.in_backward.is_stepping:
        check_finite(job.step, float(loss.detach()))  # Now or never: the backward pass is the step.
    job.accelerator.backward(loss)
    return loss.detach()
