"""Plans of the memory that a run will need, and what a recipe leaves to them. Imports no torch before it is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.artifact.merging import on_plain_model
from adaptkit.errors import AdaptkitError, FitError
from adaptkit.models.base.family import local_family
from adaptkit.recipe import Recipe
from adaptkit.registry import AutoOptions, Registry

if TYPE_CHECKING:
    from adaptkit.memory.fit import Fit
    from adaptkit.memory.plan import MemoryPlan
    from adaptkit.memory.planner import Planner
    from adaptkit.task import Splits


@dataclass(frozen=True)
class Planned:
    """A plan, and what comes of it.

    Attributes:
        recipe: With numbers in the place of every ``auto``.
        plan: Of the recipe, or why there is none.
        fits: Whether it has room.
        lines: What was chosen, and why.
    """

    recipe: Recipe
    plan: MemoryPlan | AdaptkitError
    fits: bool
    lines: Sequence[str] = ()


def make_planner(
    registry: Registry,
    splits: Splits,
    *,
    gpu_bytes: int | None = None,
    exact: bool = False,
    tokenizer_folder: Path | None = None,
) -> Planner:
    """Returns what plans runs on this machine's device, or on a GPU that need not be here.

    Args:
        registry: Of all that is installed.
        splits: The rows.
        gpu_bytes: Memory of a GPU; None: this machine's device.
        exact: Whether every block of a model is run.
        tokenizer_folder: Where a tokenizer that is trained on the rows is kept.
    """
    import torch

    from adaptkit.memory.device import free_memory
    from adaptkit.memory.planner import Planner
    from adaptkit.models.precision import best_device

    device = best_device() if gpu_bytes is None else torch.device("cuda")
    return Planner(
        registry, splits, device, free_memory(device) if gpu_bytes is None else gpu_bytes, exact, tokenizer_folder
    )


def plan_run(recipe: Recipe, planner: Planner) -> Planned:
    """Plans a recipe, with what the planner chooses for ``auto``."""
    try:
        recipe, lines = _settled(on_plain_model(recipe), planner)
        plan = planner.plan(recipe)
    except AdaptkitError as error:
        return Planned(recipe, error, fits=False)
    return Planned(recipe, plan, planner.fits(plan), lines)


def plan_strategies(recipe: Recipe, planner: Planner) -> dict[str, Planned]:
    """Plans a recipe under every strategy that there is, by name, with its default options."""
    return {name: _plan_under(recipe, name, planner) for name in sorted(planner.registry.strategies)}


def what_fits(planned: Planned, planner: Planner) -> Fit:
    """Returns the smallest change by which a run fits.

    Raises:
        FitError: Nothing helps.
    """
    from adaptkit.memory.fit import smallest_change

    assert not isinstance(planned.plan, AdaptkitError)
    found = smallest_change(planned.recipe, planner, planned.plan)
    if found is None:
        gib = 2**30
        raise FitError(
            f"the run needs {planned.plan.needed / gib:.1f} GiB, and no change of the recipe brings it down to "
            f"{planner.usable / gib:.1f} GiB",
            where=planned.recipe.model.name,
            fix="take a smaller base, or a GPU with more memory: adaptkit plan RECIPE --gpu 48GB",
        )
    return found


def settle_memory(recipe: Recipe, planner: Planner) -> tuple[Recipe, list[str]]:
    """Returns a recipe with what fits in the place of every ``auto``, and lines that say why.

    Args:
        recipe: Without stages.
        planner: Of this machine; it keeps the plan of what it settles for.

    Raises:
        FitError: The strategy is left to the memory, and none fits.
    """
    plain = recipe if planner.device.type == "cpu" and not _open(recipe) else on_plain_model(recipe)
    chosen, lines = _settled(plain, planner)
    return recipe.model_copy(update={"strategy": chosen.strategy, "training": chosen.training}), lines


def as_settled(recipe: Recipe, written: Recipe) -> Recipe:
    """Returns a recipe with what its run has chosen in the place of every ``auto``.

    Args:
        recipe: With which the run is resumed.
        written: As it stands in the folder of the run.
    """
    chosen = {key: getattr(written.training, key) for key, value in recipe.training if value == "auto"}
    chosen.pop("compute", None)  # the machine's choice, not the memory's
    update: dict[str, Any] = {}
    if isinstance(recipe.strategy, AutoOptions):
        update["strategy"] = written.strategy
        chosen["learning_rate"] = recipe.training.learning_rate or written.training.learning_rate
    return recipe.model_copy(update={**update, "training": recipe.training.model_copy(update=chosen)})


def _open(recipe: Recipe) -> bool:
    return isinstance(recipe.strategy, AutoOptions)


def _settled(recipe: Recipe, planner: Planner) -> tuple[Recipe, list[str]]:
    """Chooses a strategy, if that is open, and then the rest."""
    from adaptkit.memory.auto import settle_strategy, settle_training

    lines: list[str] = []
    if isinstance(recipe.strategy, AutoOptions):
        recipe, lines = settle_strategy(recipe, recipe.strategy, planner)
        family = local_family(recipe.model.name)
        if recipe.training.learning_rate is None and family is not None:
            rate = planner.registry.strategy(recipe.strategy.name)(recipe.strategy).learning_rate(family)
            recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"learning_rate": rate})})
    recipe, more = settle_training(recipe, planner)
    return recipe, [*lines, *more]


def _plan_under(recipe: Recipe, name: str, planner: Planner) -> Planned:
    try:
        return plan_run(planner.changed(recipe, {"strategy": name, "training.learning_rate": None}), planner)
    except AdaptkitError as error:  # an option that has no default
        return Planned(recipe, error, fits=False)
