"""Ways to build an adapted model that is only to be looked at, from the cheapest to the one that gives most values.

Where all is on the meta device, what a strategy makes takes neither time nor memory. Some need values while they build
(a drawn mask, a list of positions), and a few need the weights themselves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from adaptkit.errors import ModelError
from adaptkit.models.building import AdaptedModel, build_model
from adaptkit.models.configs import meta_model
from adaptkit.models.skeleton import without_weights

if TYPE_CHECKING:
    from adaptkit.models.precision import Numerics
    from adaptkit.models.source import ModelSource
    from adaptkit.recipe import Recipe
    from adaptkit.strategy import Strategy
    from adaptkit.task import Task

# Parameters of a base for which random weights are made.
SMALL = 2**28


class Builder(Protocol):
    """Builds an adapted model."""

    def __call__(
        self,
        recipe: Recipe,
        strategy: Strategy[Any],
        task: Task[Any],
        source: ModelSource,
        numerics: Numerics,
        total_steps: int,
    ) -> AdaptedModel:
        """Returns the model of a recipe, of so many steps."""
        ...


def on_meta(
    recipe: Recipe,
    strategy: Strategy[Any],
    task: Task[Any],
    source: ModelSource,
    numerics: Numerics,
    total_steps: int,
) -> AdaptedModel:
    """Builds everything on the meta device."""
    with torch.device("meta"):
        return skeleton(recipe, strategy, task, source, numerics, total_steps)


def skeleton(
    recipe: Recipe,
    strategy: Strategy[Any],
    task: Task[Any],
    source: ModelSource,
    numerics: Numerics,
    total_steps: int,
) -> AdaptedModel:
    """Builds the base on the meta device; the strategy makes what it makes."""
    bones = without_weights(source)
    return build_model(recipe, strategy, task, bones, total_steps=total_steps, numerics=numerics)


def with_weights(
    recipe: Recipe,
    strategy: Strategy[Any],
    task: Task[Any],
    source: ModelSource,
    numerics: Numerics,
    total_steps: int,
) -> AdaptedModel:
    """Builds a small base with random weights on the CPU.

    Raises:
        ModelError: It is not small.
    """
    bare: Any = meta_model(source.config, source.spec)
    if bare.num_parameters() > SMALL:
        raise ModelError(
            f"{strategy.name!r} needs the weights of the base to be planned, and {source.spec.name!r} is too large to "
            "make some",
            where="strategy",
            fix="run it: the first thing that a run does is to try its longest batch",
        )
    new = replace(source, spec=source.spec.model_copy(update={"init": "random"}))
    here = replace(numerics, device=torch.device("cpu"))
    return build_model(recipe, strategy, task, new, total_steps=total_steps, numerics=here)
