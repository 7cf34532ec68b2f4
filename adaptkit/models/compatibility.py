"""Whether a strategy, a task, a model and the settings of a run go together, by what they declare. No torch."""

from __future__ import annotations

from typing import Any

from adaptkit.errors import Problem, RecipeError
from adaptkit.models.family import local_family
from adaptkit.recipe import Recipe
from adaptkit.strategy import Family, Strategy
from adaptkit.task import Task


def check_compatibility(recipe: Recipe, strategy: Strategy[Any], task: Task[Any], family: Family | None = None) -> None:
    """Checks a recipe against the declared capabilities.

    Args:
        recipe: The whole recipe.
        strategy: Chosen by it.
        task: Chosen by it.
        family: Of the base; None: as far as a local config tells.

    Raises:
        RecipeError: Every combination that cannot work, at once.
    """
    family = family or local_family(recipe.model.name)
    problems = [
        *_task_problems(strategy, task, family),
        *_precision_problems(recipe, strategy),
    ]
    if recipe.training.gradient_checkpointing and not strategy.capabilities.gradient_checkpointing:
        problems.append(
            Problem(
                f"{strategy.name} does not work with gradient checkpointing",
                where="training.gradient_checkpointing",
                fix="set it to false, or choose another strategy",
            )
        )
    problems += _packing_problems(recipe, strategy, task)
    if problems:
        raise RecipeError(problems)


def _packing_problems(recipe: Recipe, strategy: Strategy[Any], task: Task[Any]) -> list[Problem]:
    if not recipe.training.packing:
        return []
    return [
        Problem(f"the {kind} {name!r} does not allow packing", "training.packing", fix="set training.packing to false")
        for kind, name, allowed in (
            ("strategy", strategy.name, strategy.capabilities.packing),
            ("task", task.name, task.capabilities.packing),
        )
        if not allowed
    ]


def _task_problems(strategy: Strategy[Any], task: Task[Any], family: Family | None) -> list[Problem]:
    problems = []
    for kind, part in (("strategy", strategy), ("task", task)):
        families = part.capabilities.families
        if family is not None and family not in families:
            problems.append(
                Problem(
                    f"the {kind} {part.name!r} does not work with {family} models",
                    where="model.name",
                    allowed=", ".join(sorted(families)),
                    fix=f"choose a model of these families, or another {kind}",
                )
            )
    tasks = strategy.capabilities.tasks
    if tasks is not None and task.name not in tasks:
        problems.append(
            Problem(
                f"the strategy {strategy.name!r} does not serve the task {task.name!r}",
                where="strategy.name",
                allowed=f"tasks of {strategy.name}: {', '.join(sorted(tasks))}",
                fix="choose another strategy: `adaptkit strategies` lists them",
            )
        )
    return problems


def _precision_problems(recipe: Recipe, strategy: Strategy[Any]) -> list[Problem]:
    wanted, needed = recipe.model.precision, strategy.base_precision()
    if wanted and needed and wanted != needed:
        return [
            Problem(
                f"model.precision is {wanted}, but the strategy {strategy.name!r} stores the base as {needed}",
                where="model.precision",
                fix=f"leave model.precision out, or choose a strategy for a {wanted} base",
            )
        ]
    if wanted in ("nf4", "int8") and not strategy.capabilities.quantized_base:
        return [
            Problem(
                f"the strategy {strategy.name!r} trains the base itself, which cannot be stored as {wanted}",
                where="model.precision",
                allowed="bf16, fp32",
                fix="choose qlora or another strategy that leaves the base frozen",
            )
        ]
    return []
