"""The longest micro-batch of a run, tried before it is due: what would run out of memory does so at once."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from adaptkit.training.gradient import accumulate_passes, shrink
from adaptkit.training.splitting import DoesNotFitError

if TYPE_CHECKING:
    from adaptkit.training.job import Job

GIB = 2**30


def has_own_memory(device: torch.device) -> bool:
    """Returns whether a device has little memory, of its own; the host's is large, and its passes are slow."""
    return device.type != "cpu"


def rehearse(job: Job) -> None:
    """Takes the longest micro-batch of the run through the model and back, and leaves no trace of it.

    Where it does not fit, the micro-batches of the run are cut smaller, until the longest does. Called when the
    strategy has been told of the step, so that what trains is what trains in the step.

    Raises:
        FitError: A single row does not fit.
    """
    while True:
        step, index = job.batches.longest(job.total_steps)
        micro_batches = job.batches.at(step)
        # The second pass of a step finds the gradients of the first in memory.
        passes = [micro_batches[index]] * min(2, len(micro_batches))
        job.beginning.keep()
        try:
            with job.in_backward.dropping() if job.in_backward else nullcontext():
                accumulate_passes(job, passes, count=1.0)
        except DoesNotFitError:
            job.beginning.restore()
        else:
            job.beginning.passed()
            job.beginning.restore()
            break
        shrink(job, step, index)
    tokens = job.batches.size(step, index)
    job.tell(f"the longest batch, {tokens:,} tokens, fits into memory{_peak(job.accelerator.device)}")


def _peak(device: torch.device) -> str:
    if not has_own_memory(device):
        return ""
    return f": peak {torch.accelerator.max_memory_allocated(device) / GIB:.2f} GiB so far"
