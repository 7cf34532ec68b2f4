"""Everything that a resumed run needs, taken from a job and given back to one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptkit.training.optim import load_optimizer_state
from adaptkit.training.rng import rng_state, set_rng_state

if TYPE_CHECKING:
    from adaptkit.training.job import Job


def take_snapshot(job: Job) -> dict[str, Any]:
    """Returns the parts of a checkpoint: model, optimizer, scheduler, random numbers, strategy, position.

    Raises:
        PluginError: The strategy has changed what it does not save.
    """
    job.check_unsaved()
    tensors, values = job.strategy.training_state()
    return {
        "model": job.strategy.state(job.model),
        "optimizer": job.optimizer.state_dict(),
        "scheduler": job.scheduler.state_dict(),
        "rng": rng_state(),
        "strategy": {"tensors": tensors, "values": values},
        "position": {"step": job.step, "micro_batch_tokens": job.batches.tokens},
    }


def restore_snapshot(job: Job, parts: Mapping[str, Any]) -> None:
    """Puts a freshly built job where `take_snapshot` found one; random numbers come last.

    Raises:
        CheckpointError: The tensors do not belong to this model.
    """
    job.strategy.load_state(job.model, parts["model"])
    job.strategy.load_training_state(parts["strategy"]["tensors"], parts["strategy"]["values"])
    load_optimizer_state(job.optimizer, parts["optimizer"])
    job.scheduler.load_state_dict(parts["scheduler"])
    job.step = parts["position"]["step"]
    job.batches.tokens = parts["position"].get("micro_batch_tokens", job.batches.tokens)
    set_rng_state(parts["rng"])
