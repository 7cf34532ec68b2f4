"""Putting a job together: batches, optimizer, schedule and what batches go through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from adaptkit.errors import TrainingError
from adaptkit.task import Features
from adaptkit.training.batches import TrainingBatches, total_steps
from adaptkit.training.features import CachedModel, cache_features, freeze_dropout
from adaptkit.training.graphs import recorder
from adaptkit.training.in_backward import InBackward, check_single_pass
from adaptkit.training.isolation import check_packing
from adaptkit.training.job import Job
from adaptkit.training.optim import check_groups, decay_groups, make_scheduler
from adaptkit.training.rng import seed_everything
from adaptkit.training.saved_state import Unsaved, check_saves_what_trains

if TYPE_CHECKING:
    from torch import nn

    from adaptkit.models.building import AdaptedModel
    from adaptkit.recipe import TrainingSpec
    from adaptkit.strategy import Strategy
    from adaptkit.task import Task


def make_job(
    adapted: AdaptedModel,
    strategy: Strategy[Any],
    task: Task[Any],
    settings: TrainingSpec,
    features: Sequence[Features],
    optimizer_factory: Callable[..., torch.optim.Optimizer],
) -> Job:
    """Returns a job that stands before its first step.

    Args:
        adapted: Model and base.
        strategy: May bring its own groups and optimizer.
        task: Of the run.
        settings: The recipe's ``training`` section, with a learning rate.
        features: Of the training rows.
        optimizer_factory: Of the optimizer that the recipe names.

    Raises:
        TrainingError: A trainable parameter is in no parameter group, or in two; there are several processes; or an
            optimizer that steps in the backward pass finds a step with several forward passes.
        ModelError: Rows are to be packed, and the model does not keep them apart.
        PluginError: The strategy does not save what it trains.
    """
    seed_everything(settings.seed)
    model = adapted.model.train()
    if settings.packing:
        check_packing(model, features, adapted.max_length, adapted.numerics)
    check_saves_what_trains(model, strategy)
    optimizer = make_optimizer(model, strategy, settings, optimizer_factory)
    steps = total_steps(len(features), settings)
    accelerator = _one_process(adapted.numerics.device)
    pack_to = adapted.max_length if settings.packing else None
    batches = TrainingBatches(features, task, adapted.base.tokenizer, settings, pack_to=pack_to)
    prepared: torch.optim.Optimizer
    if settings.optimizer_in_backward:
        check_single_pass(batches, steps)
        wrapped, prepared = accelerator.prepare(model), InBackward(optimizer)
    else:
        wrapped, prepared = accelerator.prepare(model, optimizer)
    job = Job(
        model=model,
        wrapped=wrapped,
        strategy=strategy,
        task=task,
        batches=batches,
        optimizer=prepared,
        scheduler=make_scheduler(optimizer, settings.schedule, steps, settings.warmup),
        accelerator=accelerator,
        numerics=adapted.numerics,
        total_steps=steps,
        max_grad_norm=settings.max_grad_norm,
        unsaved=Unsaved(model, strategy),
    )
    if settings.cuda_graphs == "auto":
        job.recorder = recorder(model, strategy, job.optimizer, adapted.numerics.device)
    return job


def _one_process(device: torch.device) -> Accelerator:
    """Returns what stands between the loop and the device.

    Raises:
        TrainingError: There are several processes.
    """
    accelerator = Accelerator(mixed_precision="no", cpu=device.type == "cpu")
    if accelerator.num_processes > 1:
        raise TrainingError(
            f"{accelerator.num_processes} processes were started, but a run is one process on one device",
            fix="start it with `adaptkit run`, without a launcher",
        )
    return accelerator


def make_optimizer(
    model: nn.Module,
    strategy: Strategy[Any],
    settings: TrainingSpec,
    factory: Callable[..., torch.optim.Optimizer],
) -> torch.optim.Optimizer:
    """Returns the strategy's own optimizer, or else that of a factory, over the model's parameter groups.

    Raises:
        TrainingError: A trainable parameter is in no parameter group, or in two.
    """
    groups = _groups(model, strategy, settings)
    return strategy.make_optimizer(groups, settings) or factory(groups, settings)


def _groups(model: nn.Module, strategy: Strategy[Any], settings: TrainingSpec) -> list[dict[str, Any]]:
    """Returns the strategy's parameter groups, or those by weight decay, once they are known to be whole."""
    assert settings.learning_rate is not None, "the runner fills in the strategy's own"
    groups = strategy.parameter_groups(model, settings.learning_rate)
    if groups is None:
        groups = decay_groups(model, settings.learning_rate, settings.weight_decay)
    check_groups(model, groups)
    for group in groups:
        group.setdefault("weight_decay", settings.weight_decay)
    return groups


def use_frozen_features(job: Job, adapted: AdaptedModel, settings: TrainingSpec, *splits: Sequence[Features]) -> bool:
    """Runs the frozen part of the model once over all rows, where the strategy has one and the recipe allows it.

    Returns:
        Whether features are cached.
    """
    point = job.strategy.frozen_features(job.model)
    if point is None:
        return False
    freeze_dropout(job.model, point)
    if not settings.cache_frozen_features:
        return False
    tokenizer = adapted.base.tokenizer
    for features in splits:
        if features and not cache_features(
            job.model, point, job.task, features, tokenizer, job.numerics, settings.pass_tokens
        ):
            return False
    job.wrapped = CachedModel(job.model, point)
    return True
