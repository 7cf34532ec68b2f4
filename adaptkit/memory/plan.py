"""The most memory that a run will take, by part: for the longest batch that its rows give."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from adaptkit.errors import AdaptkitError, DataError, ModelError, RecipeError
from adaptkit.memory.building import Blueprint, Builder, on_meta, skeleton, with_weights
from adaptkit.memory.device import context_bytes, library_workspace
from adaptkit.memory.fused import fuse_as_liger
from adaptkit.memory.moments import evaluation_moments, training_moments
from adaptkit.memory.stacks import shorten
from adaptkit.memory.trace import GRADIENTS, PARTS, Trace
from adaptkit.memory.tracker import WORKSPACE
from adaptkit.models.efficiency.host_embeddings import frozen_tables
from adaptkit.models.efficiency.host_head import HostLinear
from adaptkit.models.layers import count_parameters
from adaptkit.training.batches import TrainingBatches, total_steps
from adaptkit.training.graphs import can_be_recorded, recordings
from adaptkit.training.setup import make_optimizer

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from adaptkit.memory.tracker import Parts
    from adaptkit.models.precision import Numerics
    from adaptkit.recipe import Precision, Recipe
    from adaptkit.strategy import Strategy
    from adaptkit.task import Task
    from adaptkit.training.preparation import Preparation

OptimizerFactory = Callable[..., "Optimizer"]


@dataclass(frozen=True)
class MemoryPlan:
    """What a run needs at its peak.

    Attributes:
        parts: Bytes of tensors, by part.
        moment: When the peak is.
        context: Bytes that the device takes besides what the allocator counts.
        shape: Rows and tokens of the longest batch.
        precision: Storage of the base.
        trainable: Parameters that train.
        total: Parameters that there are.
    """

    parts: Mapping[str, int]
    moment: str
    context: int
    shape: tuple[int, ...]
    precision: Precision
    trainable: int
    total: int

    @property
    def peak(self) -> int:
        """Bytes of all tensors: what the device's allocator will report."""
        return sum(self.parts.values())

    @property
    def tokens(self) -> int:
        """Padded tokens of the longest batch."""
        return math.prod(self.shape)

    @property
    def needed(self) -> int:
        """Bytes that must be free on the device."""
        return self.peak + self.context


def planned_peak(
    recipe: Recipe,
    strategy: Strategy[Any],
    task: Task[Any],
    prepared: Preparation,
    numerics: Numerics,
    optimizer: OptimizerFactory,
    *,
    exact: bool = False,
) -> MemoryPlan:
    """Plans a run from its config and its rows: no weights are read, and none are made.

    Args:
        recipe: With numbers in the place of ``auto``, and a learning rate.
        strategy: A new one: it adapts a model that is thrown away.
        task: Has been prepared.
        prepared: Of the recipe.
        numerics: How the run would compute, and on which device.
        optimizer: Factory of the one that the recipe names.
        exact: Whether every block of the model is run; else four of each stack, where those in between are alike.

    Raises:
        ModelError: The model cannot be made without weights, or cannot be run without values.
    """
    failures: list[Exception] = []
    steps = total_steps(len(prepared.train), recipe.training)
    for build, whole in dict.fromkeys(((on_meta, exact), (skeleton, exact), (skeleton, True), (with_weights, True))):
        fresh = type(strategy)(strategy.options)
        blueprint = Blueprint(recipe, fresh, task, prepared.source, numerics, steps)
        try:
            return _plan(build, blueprint, prepared, optimizer, exact=whole)
        except (RecipeError, DataError):
            raise
        except Exception as error:  # of whatever a model or a strategy does with tensors that have no values
            failures.append(error)
    last = failures[-1]
    raise last if isinstance(last, AdaptkitError) else _impossible(recipe, last) from last


def _impossible(recipe: Recipe, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ModelError(
        f"{recipe.strategy.name!r} on {recipe.model.name!r} cannot be planned: {reason}",
        where="strategy",
        fix="run it: on a GPU its longest batch is tried before the first step, and cut in two if it does not fit",
    )


def _plan(
    build: Builder, blueprint: Blueprint, prepared: Preparation, optimizer: OptimizerFactory, *, exact: bool
) -> MemoryPlan:
    recipe, strategy, task, numerics = blueprint.recipe, blueprint.strategy, blueprint.task, blueprint.numerics
    settings = recipe.training
    adapted = build(blueprint)
    model = adapted.model
    trainable, total = count_parameters(model)
    pack_to = adapted.max_length if settings.packing else None
    batches = TrainingBatches(prepared.train, task, prepared.source.tokenizer, settings, pack_to=pack_to)
    step, index = batches.longest(blueprint.total_steps)
    passes = batches.at(step)
    strategy.before_step(model, 0)
    recorded, gradients = _recorded_passes(model, blueprint, batches), _trained_bytes(model)
    cached = settings.cache_frozen_features and strategy.frozen_features(model) is not None
    trace = Trace(
        model,
        [] if exact else shorten(model),
        numerics,
        vocabulary=prepared.source.vocab_size,
        on_host=_on_host(model, recipe, numerics),
        fused=fuse_as_liger(model) if numerics.device.type == "cuda" and settings.kernels == "auto" else (),
    )
    make = partial(make_optimizer, model, strategy, settings, optimizer)
    moments = training_moments(trace, settings, task, make, passes, index, cached=cached)
    # Each recorded pass keeps its gradients: beside those that several passes of a step add up to …
    _add_gradients(moments, max(recorded - (len(passes) == 1), 0) * gradients)
    if prepared.evaluation:
        visiting = _visiting_bytes(model)
        later = evaluation_moments(trace, task, prepared, settings.pass_tokens, numerics, visiting)
        _add_gradients(later, recorded * gradients)  # … and in an evaluation, which has none of its own.
        moments |= later
    moment, parts = max(moments.items(), key=lambda item: sum(item[1].values()))
    parts[WORKSPACE] += library_workspace(numerics.device, recorded=recorded > 0)
    return MemoryPlan(
        parts={part: parts[part] for part in PARTS},
        moment=moment,
        context=context_bytes(numerics.device),
        shape=tuple(passes[index]["input_ids"].shape),
        precision=numerics.precision,
        trainable=trainable,
        total=total,
    )


def _recorded_passes(model: nn.Module, blueprint: Blueprint, batches: TrainingBatches) -> int:
    """Returns how many passes a run will have recorded."""
    settings = blueprint.recipe.training
    on_gpu = blueprint.numerics.device.type == "cuda" and settings.cuda_graphs == "auto"
    if not on_gpu or settings.optimizer_in_backward or not can_be_recorded(model, blueprint.strategy):
        return 0
    return recordings(batches, blueprint.total_steps)


def _add_gradients(moments: Mapping[str, Parts], size: int) -> None:
    for parts in moments.values():
        parts[GRADIENTS] += size


def _trained_bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)


def _on_host(model: nn.Module, recipe: Recipe, numerics: Numerics) -> list[str]:
    """Returns the parameters that wait in the host's memory."""
    if "embeddings" not in recipe.training.offload or numerics.device.type == "cpu":
        return []
    return list(frozen_tables(model))


def _visiting_bytes(model: nn.Module) -> int:
    """Returns what an output layer that waits in the host takes on the device as long as texts are written."""
    return sum(layer.weight.nbytes for layer in model.modules() if isinstance(layer, HostLinear))
