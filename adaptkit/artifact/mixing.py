"""Several runs mixed by weight into one model: the base, and of each run a share of what it changed.

Source: Ilharco et al. 2022, "Editing Models with Task Arithmetic" (arXiv:2212.04089).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from adaptkit.artifact.merging import differing, named
from adaptkit.artifact.run import Run
from adaptkit.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptkit.task import BaseModel

WHOLE = ("fp32", "bf16")


def check_mixable(runs: Mapping[str, Run], weights: Mapping[str, float]) -> None:
    """Raises when runs cannot be mixed.

    Args:
        runs: By name.
        weights: Of some of them.

    Raises:
        RecipeError: A weight is no number, or they add up to nothing, which no head is an average by.
        ModelError: A run cannot become part of its base's weights, or has another task, other labels, or a quantised
            base.
    """
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise RecipeError(f"the weight of {name!r} is {weight!r}", allowed="a number, for example 0.5")
    first = runs[next(iter(weights))]
    for name in weights:
        run = runs[name]
        if not run.strategy.capabilities.mergeable:
            raise _refusal(
                name,
                f"what {run.strategy.name!r} trained cannot become part of its base's weights",
                f"runs of {named(run.mergeable_strategies())}",
            )
        if run.base_precision not in WHOLE:
            raise _refusal(name, f"its base is stored as {run.base_precision}", "runs on a base in fp32 or bf16")
        if why := differing(first, run.task):
            raise _refusal(name, f"of the others, {why}", "runs of one task with the same labels")
    if first.head_modules and sum(weights.values()) <= 0:
        raise RecipeError(
            f"the weights add up to {sum(weights.values()):g}, so that there is no average of the heads",
            allowed="weights whose sum is greater than 0",
        )


def mixed(base: BaseModel, runs: Mapping[str, Run], weights: Mapping[str, float]) -> nn.Module:
    """Returns ``W + Σ w (W' - W)`` for every tensor W of the base, W' being what a run made of it.

    What the base has no values of, the head and new tokens, is the average ``Σ w W' / Σ w``.

    Args:
        base: Of all runs; stays as it is, and shares with the result what no run has changed.
        runs: By name.
        weights: Of some of them, which `check_mixable` has accepted.
    """
    from adaptkit.models.sharing import shared_copy

    total = sum(weights.values())
    before = dict(base.module.named_parameters())
    new = {name for name in before if _is_new(name, base)}
    changes: dict[str, Tensor] = {}
    for run_name, weight in weights.items():
        for name, merged in _merged(runs[run_name], base).items():
            change = (
                weight / total * merged.float() if name in new else weight * (merged.float() - before[name].float())
            )
            changes[name] = changes[name] + change if name in changes else change
    module = shared_copy(base.module)
    for name, parameter in module.named_parameters():
        if name in new:
            parameter.data = changes[name]
        elif changes[name].any():
            parameter.data = (before[name].float() + changes[name]).to(parameter.dtype)
    return module.eval()


def _is_new(name: str, base: BaseModel) -> bool:
    return name in base.new_parameters or name.startswith(tuple(f"{module}." for module in base.head_modules))


def _merged(run: Run, base: BaseModel) -> dict[str, Tensor]:
    """Returns the parameters of a run that has become a plain model, by the names that they have in the base.

    Some strategies write into the weights when they merge, so it happens on a copy; and on a run of its own, because a
    strategy knows the model that it adapted last.

    Raises:
        ModelError: The strategy made a model of other parameters.
    """
    own = Run(run.directory)
    adapted = own.build(base=replace(base, module=copy.deepcopy(base.module)))
    merged = {name: parameter.detach() for name, parameter in own.strategy.merge(adapted.model).named_parameters()}
    if merged.keys() != dict(base.module.named_parameters()).keys():
        raise _refusal(str(run.directory), f"{run.strategy.name!r} merges into a model of other parameters", None)
    return merged


def _refusal(name: str, why: str, allowed: str | None) -> ModelError:
    return ModelError(
        f"the run {name!r} cannot be mixed with others by weight: {why}",
        allowed=allowed,
        fix=f"use it alone, stack.use({json.dumps(name)}), or leave it out",
    )
