"""The training loop: the only place that steps.

A generator of step records. Whoever drives it reports, evaluates, saves or stops between two records;
nothing of that is in here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from time import perf_counter

import torch
from torch import Tensor, nn

from adaptkit.errors import TrainingError
from adaptkit.hookspecs import StepRecord
from adaptkit.training.finite import check_finite
from adaptkit.training.gradient import step_gradient
from adaptkit.training.job import Job
from adaptkit.training.rehearsal import rehearse


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
