"""Ways to build an adapted model that is only to be looked at, from the cheapest to the one that gives most values.

Where all is on the meta device, what a strategy makes takes neither time nor memory. Some need values while they build
(a drawn mask, a list of positions), and a few need the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from adaptkit.errors import ModelError
from adaptkit.models.base.configs import meta_model
from adaptkit.models.base.skeleton import without_weights
from adaptkit.models.building import AdaptedModel, build_model
from adaptkit.models.replacing import replaced

if TYPE_CHECKING:
    from adaptkit.models.base.source import ModelSource
    from adaptkit.models.precision import Numerics
    from adaptkit.recipe import Recipe
    from adaptkit.strategy import Strategy
    from adaptkit.task import Task

DRAW = tuple(name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_"))
# Parameters of a base for which random weights are made.
SMALL = 2**28


@dataclass(frozen=True)
class Blueprint:
    """What an adapted model is built from, as by `build_model`.

    Attributes:
        recipe: Names the base's precision.
        strategy: Adapts.
        task: Has been prepared.
        source: Of the base.
        numerics: How it would compute, and on which device.
        total_steps: Of the run.
    """

    recipe: Recipe
    strategy: Strategy[Any]
    task: Task[Any]
    source: ModelSource
    numerics: Numerics
    total_steps: int

    def build(self, source: ModelSource, numerics: Numerics) -> AdaptedModel:
        """Builds the model from another source, for other numerics."""
        return build_model(
            self.recipe, self.strategy, self.task, source, total_steps=self.total_steps, numerics=numerics
        )


Builder: TypeAlias = Callable[[Blueprint], AdaptedModel]


def on_meta(blueprint: Blueprint) -> AdaptedModel:
    """Builds everything on the meta device; nothing draws first values there, which takes a third of the time."""
    with torch.device("meta"), replaced(nn.init, **dict.fromkeys(DRAW, _undrawn)):
        return skeleton(blueprint)


def _undrawn(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    return tensor


def skeleton(blueprint: Blueprint) -> AdaptedModel:
    """Builds the base on the meta device; the strategy makes what it makes."""
    return blueprint.build(without_weights(blueprint.source), blueprint.numerics)


def with_weights(blueprint: Blueprint) -> AdaptedModel:
    """Builds a small base with random weights on the CPU.

    Raises:
        ModelError: It is not small.
    """
    source = blueprint.source
    bare: Any = meta_model(source.config, source.spec)
    if bare.num_parameters() > SMALL:
        raise ModelError(
            f"{blueprint.strategy.name!r} needs the weights of the base to be planned, and {source.spec.name!r} is too "
            "large to make some",
            where="strategy",
            fix="run it: on a GPU its longest batch is tried before the first step, and cut in two if it does not fit",
        )
    new = replace(source, spec=source.spec.model_copy(update={"init": "random"}))
    return blueprint.build(new, replace(blueprint.numerics, device=torch.device("cpu")))
