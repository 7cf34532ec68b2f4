"""The command that says how much memory a run will need, and what makes it fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from adaptkit.cli.tables import print_table
from adaptkit.cli.train import Overrides, RecipePath
from adaptkit.errors import AdaptkitError, FitError, RecipeError

if TYPE_CHECKING:
    from adaptkit.memory.plan import MemoryPlan
    from adaptkit.memory.planner import Planner
    from adaptkit.planning import Planned
    from adaptkit.recipe import Recipe

GIB = 2**30
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(GB|GiB|MB|MiB)?", re.IGNORECASE)


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command("plan")(plan)


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    gpu: Annotated[
        str, typer.Option("--gpu", metavar="SIZE", help="A GPU with so much memory, as in 24GB, in place of this one.")
    ] = "",
    all_strategies: Annotated[bool, typer.Option("--all-strategies", help="One line for every strategy.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Go through every layer, not four for all.")] = False,
) -> None:
    """Say how much memory a run will need, without loading its model."""
    from adaptkit.planning import make_planner, plan_strategies
    from adaptkit.recipe import StagedRecipe
    from adaptkit.registry import load_registry
    from adaptkit.runner import check, choose, resolve

    registry = load_registry()
    size = _bytes(gpu) if gpu else None
    parsed = resolve(recipe, overrides or (), registry)
    splits = check(parsed, *choose(parsed, registry), registry)
    planner = make_planner(registry, splits, gpu_bytes=size, exact=exact)
    stages = parsed.stages if isinstance(parsed, StagedRecipe) else (parsed,)
    if all_strategies:
        _print_strategies(plan_strategies(stages[0], planner), planner)
        return
    for number, stage in enumerate(stages, 1):
        if len(stages) > 1:
            print(f"stage {number} of {len(stages)}: {stage.strategy.name}")
        _plan_one(stage, planner, recipe)


def _plan_one(recipe: Recipe, planner: Planner, where: str) -> None:
    """Prints the plan of a recipe without stages.

    Raises:
        FitError: It has no room.
    """
    from adaptkit.planning import plan_run, what_fits

    planned = plan_run(recipe, planner)
    if isinstance(planned.plan, AdaptkitError):
        raise planned.plan
    for line in planned.lines:
        print(line)
    _print_parts(planned.plan, planner)
    if planned.fits:
        print("it fits")
        return
    found = what_fits(planned, planner)
    raise FitError(
        f"the run needs {planned.plan.needed / GIB:.2f} GiB, {planner.usable / GIB:.2f} GiB of "
        f"{planner.limit / GIB:.1f} GiB can be used",
        where=where,
        fix=f"the smallest change by which it fits, into {found.plan.needed / GIB:.2f} GiB: {found}",
    )


def _print_parts(plan: MemoryPlan, planner: Planner) -> None:
    rows = [(part, _gib(size)) for part, size in plan.parts.items() if size]
    rows += [("peak of all tensors", _gib(plan.peak))]
    if plan.context:
        rows += [("context of the GPU", _gib(plan.context))]
    print(f"{plan.trainable:,} of {plan.total:,} parameters train; the longest batch is {_shape(plan)}")
    print_table(("MEMORY", "GiB"), rows, numbers=("GiB",))
    print(f"needed: {_gib(plan.needed)} GiB of {planner.limit / GIB:.1f} GiB on {planner.device}")
    print(f"most is needed in: {plan.moment}")


def _print_strategies(plans: Mapping[str, Planned], planner: Planner) -> None:
    rows = []
    for name, planned in plans.items():
        plan = planned.plan
        if isinstance(plan, AdaptkitError):
            rows.append((name, "", "", "", plan.problems[0].found))
        else:
            rows.append((name, _gib(plan.needed), "yes" if planned.fits else "no", f"{plan.trainable:,}", ""))
    print_table(("STRATEGY", "GiB", "FITS", "TRAINS", "WHY NOT"), rows, numbers=("GiB", "TRAINS"))
    print(f"GiB that a run needs of {planner.limit / GIB:.1f} on {planner.device}; parameters that train")


def _shape(plan: MemoryPlan) -> str:
    return " x ".join(f"{size:,}" for size in plan.shape) + " tokens"


def _gib(size: int) -> str:
    return f"{size / GIB:.3f}"


def _bytes(text: str) -> int:
    """Returns the bytes of a size; a GPU that is sold with 24 GB has 24 GiB."""
    match = SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise RecipeError(
            f"{text!r} is no size of a memory",
            where="--gpu",
            allowed="a number of gigabytes or megabytes: 24GB, 7.5GB, 512MB",
            fix="--gpu 24GB",
        )
    unit = 2**20 if (match[2] or "GB").lower().startswith("m") else GIB
    return int(float(match[1]) * unit)
