"""From the words of a recipe to a model that is adapted and stands on its device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adaptkit.errors import ModelError
from adaptkit.models.adaptation import adapt_model
from adaptkit.models.base.new_tokens import new_row_parameters
from adaptkit.models.base.source import ModelSource, max_length
from adaptkit.models.compatibility import check_compatibility
from adaptkit.models.efficiency.host_activations import HostActivations
from adaptkit.models.efficiency.host_embeddings import move_to_host
from adaptkit.models.efficiency.kernels import fuse, liger_kernels
from adaptkit.models.efficiency.recomputation import checkpoint_gradients
from adaptkit.models.heads.kept_head import fill_head
from adaptkit.models.layers import count_parameters
from adaptkit.models.precision import Numerics, choose_numerics
from adaptkit.strategy import AdaptContext

if TYPE_CHECKING:
    from adaptkit.recipe import Recipe, TrainingSpec
    from adaptkit.strategy import Strategy
    from adaptkit.task import BaseModel, Task


@dataclass
class LoadedModel:
    """A model on its device, and what it takes to ask it.

    Attributes:
        model: The module.
        base: What was loaded.
        numerics: How the model computes.
        max_length: Tokens that a row may have.
    """

    model: nn.Module
    base: BaseModel
    numerics: Numerics
    max_length: int


@dataclass
class AdaptedModel(LoadedModel):
    """An adapted model and what it was made of; `model` is what `Strategy.adapt` returned.

    Attributes:
        context: What the strategy knows.
        trainable_parameters: How many parameters train, before a strategy narrows it step by step.
        total_parameters: How many it has.
        source: What the base was loaded from.
        notes: What a person should know of how memory is saved.
    """

    context: AdaptContext
    trainable_parameters: int
    total_parameters: int
    source: ModelSource
    notes: tuple[str, ...] = ()


def load_base(
    recipe: Recipe, strategy: Strategy[Any], task: Task[Any], source: ModelSource, numerics: Numerics | None = None
) -> BaseModel:
    """Loads the base with a head for the task: a new one, or the one that the run before has trained.

    A head that is kept trains as a new one does; only its first values are others.

    Raises:
        ModelError: The base cannot be loaded, lacks what the task needs, or has no head to keep.
        CheckpointError: The head that is to be kept is damaged.
    """
    base = task.load_base(source, numerics or choose_numerics(recipe, strategy), recipe.training.seed)
    if recipe.model.head == "keep" and not source.skeleton:
        fill_head(base, Path(source.spec.name))
    base.new_parameters = tuple(dict.fromkeys((*base.new_parameters, *new_row_parameters(base.module))))
    return base


def base_alone(
    recipe: Recipe, strategy: Strategy[Any], task: Task[Any], source: ModelSource, base: BaseModel
) -> LoadedModel:
    """Returns the base as the strategy would be given it: no adapter, no training.

    Args:
        recipe: As for `build_model`.
        strategy: As for `build_model`.
        task: As for `build_model`.
        source: Of the base.
        base: As `load_base` gave it.

    Raises:
        ModelError: The base alone cannot do the task.
    """
    rows = new_row_parameters(base.module)
    new = [name for name in base.new_parameters if name not in rows]
    if new and recipe.model.head == "new":
        raise ModelError(
            f"the base {recipe.model.name!r} alone cannot do {task.name}: its files lack {len(new)} parameters, "
            f"{new[0]} among them, which are random until they are trained",
            fix="ask the run itself; a base that has a head of its own, as language models do, can be asked alone",
        )
    numerics = choose_numerics(recipe, strategy)
    length = max_length(recipe, source, strategy.extra_positions())
    return LoadedModel(base.module.to(numerics.device).eval(), base, numerics, length)


def build_model(
    recipe: Recipe,
    strategy: Strategy[Any],
    task: Task[Any],
    source: ModelSource,
    *,
    total_steps: int = 0,
    base: BaseModel | None = None,
    numerics: Numerics | None = None,
) -> AdaptedModel:
    """Loads the base with the task's head and lets the strategy adapt it.

    New weights are a function of ``training.seed`` alone.

    Args:
        recipe: Names the base's precision.
        strategy: Adapts.
        task: Has been prepared, or has been given its state.
        source: Of the base.
        total_steps: Of the run; 0 when a trained model is rebuilt.
        base: In place of one that is loaded; it is changed.
        numerics: In place of those that this machine would choose.

    Raises:
        ModelError: The base cannot be loaded or adapted.
        RecipeError: The strategy or the task does not serve this family.
    """
    check_compatibility(recipe, strategy, task, source.family)
    task.loss_chunk_tokens = recipe.training.loss_chunk_tokens
    numerics = numerics or choose_numerics(recipe, strategy)
    base = base or load_base(recipe, strategy, task, source, numerics)
    context = AdaptContext(
        family=base.family,
        task=task.name,
        peft_task_type=task.peft_task_type,
        head_modules=base.head_modules,
        new_parameters=base.new_parameters,
        tokenizer=base.tokenizer,
        total_steps=total_steps,
        seed=recipe.training.seed,
        precision=numerics.precision,
        bf16=numerics.bf16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.training.seed)
        model = adapt_model(strategy, base, context)
    if not source.skeleton:
        model = model.to(numerics.device)
        if recipe.training.kernels == "auto" and numerics.device.type == "cuda" and (kernels := liger_kernels()):
            fuse(model, kernels)
    notes = _save_memory(model, recipe.training, numerics.device)
    length = max_length(recipe, source, strategy.extra_positions())
    trainable, total = count_parameters(model)
    return AdaptedModel(model, base, numerics, length, context, trainable, total, source, notes)


def _save_memory(model: nn.Module, settings: TrainingSpec, device: torch.device) -> tuple[str, ...]:
    """Recomputes and moves to the host what the recipe says; returns what a person should know of it."""
    offload = () if settings.offload == "auto" else settings.offload
    if settings.recomputation:
        host = HostActivations(device) if "activations" in offload else None
        checkpoint_gradients(model, settings.recomputation, host=host)
    note = move_to_host(model, device) if "embeddings" in offload else None
    return (note,) if note else ()
