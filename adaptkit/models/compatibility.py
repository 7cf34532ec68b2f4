"""Whether a strategy, a task, a model and the settings of a run go together, by what they declare. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from adaptkit.errors import Problem, RecipeError
from adaptkit.models.base.family import local_family
from adaptkit.recipe import Recipe
from adaptkit.strategy import Family, Strategy
from adaptkit.task import Task

EXAMPLES: Mapping[Family, str] = {
    "encoder": "BERT, RoBERTa, MiniLM …",
    "decoder": "GPT-2, Llama, SmolLM2 …",
    "encoder-decoder": "T5, BART …",
}
# Methods of a strategy with which the gradients of a step must be there together.
GRADIENT_METHODS = ("make_optimizer", "extra_loss", "after_step")


def check_compatibility(
    recipe: Recipe,
    strategy: Strategy[Any],
    task: Task[Any],
    family: Family | None = None,
    *,
    tasks: Iterable[type[Task[Any]]] = (),
) -> None:
    """Checks a recipe against the declared capabilities.

    Args:
        recipe: The whole recipe.
        strategy: Chosen by it.
        task: Chosen by it.
        family: Of the base; None: as far as a local config tells.
        tasks: All that there are, to name those that would go with the base.

    Raises:
        RecipeError: Every combination that cannot work, at once.
    """
    family = family or local_family(recipe.model.name)
    problems = [
        *_family_problems(strategy, task, family, tasks),
        *_task_problems(strategy, task),
        *_precision_problems(recipe, strategy),
    ]
    if recipe.training.recomputation and not strategy.capabilities.gradient_checkpointing:
        problems.append(
            Problem(
                f"{strategy.name} does not work with gradient checkpointing",
                where="training.gradient_checkpointing",
                fix="set it to false, or choose another strategy",
            )
        )
    problems += _packing_problems(recipe, strategy, task)
    problems += _memory_problems(recipe, strategy)
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


def _memory_problems(recipe: Recipe, strategy: Strategy[Any]) -> list[Problem]:
    """Returns what the settings that save memory exclude."""
    settings, problems = recipe.training, []
    if "activations" in settings.offload and settings.gradient_checkpointing is False:
        problems.append(
            Problem(
                "what waits in the host's memory are the inputs of blocks that are computed again, and none is",
                where="training.offload",
                fix="set training.gradient_checkpointing to true, or take activations off training.offload",
            )
        )
    if not settings.optimizer_in_backward:
        return problems
    where = "training.optimizer_in_backward"
    if settings.max_grad_norm is not None:
        problems.append(
            Problem(
                f"an optimizer that steps in the backward pass cannot clip the gradient to a global norm "
                f"({settings.max_grad_norm:g}): it is known only when all have stepped",
                where=where,
                fix="set training.max_grad_norm to null, or optimizer_in_backward to false",
            )
        )
    needed = [name for name in GRADIENT_METHODS if getattr(type(strategy), name) is not getattr(Strategy, name)]
    if needed:
        problems.append(
            Problem(
                f"the strategy {strategy.name!r} needs the gradients of a whole step at once ({', '.join(needed)})",
                where=where,
                fix="set it to false, or choose another strategy",
            )
        )
    return problems


def _family_problems(
    strategy: Strategy[Any], task: Task[Any], family: Family | None, tasks: Iterable[type[Task[Any]]]
) -> list[Problem]:
    if family is None:
        return []
    serving = sorted(other.name for other in tasks if family in other.capabilities.families)
    named = f"a task for {family} models: {', '.join(serving)}" if serving else "another task"
    return [
        Problem(
            f"the {kind} {part.name!r} does not work with {family} models",
            where="model.name",
            allowed=", ".join(f"{one} models ({EXAMPLES[one]})" for one in sorted(part.capabilities.families)),
            fix=f"choose such a model, or {other}",
        )
        for kind, part, other in (("strategy", strategy, "another strategy"), ("task", task, named))
        if family not in part.capabilities.families
    ]


def _task_problems(strategy: Strategy[Any], task: Task[Any]) -> list[Problem]:
    problems = []
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
    elif task.capabilities.generates and not strategy.capabilities.generates:
        problems.append(
            Problem(
                f"the task {task.name!r} writes texts, which models adapted with {strategy.name!r} do not",
                where="strategy.name",
                fix="choose another strategy: `adaptkit strategies` lists them",
            )
        )
    return problems


def _precision_problems(recipe: Recipe, strategy: Strategy[Any]) -> list[Problem]:
    wanted, needed = recipe.model.precision, strategy.base_precision()
    few_bits = next((precision for precision in (wanted, needed) if precision in ("nf4", "int8")), None)
    if few_bits and recipe.model.init == "random":
        return [
            Problem(
                f"random weights cannot be stored as {few_bits}: what is to be learned does not fit into so few bits",
                where="model.precision" if few_bits == wanted else "strategy.name",
                allowed="fp32, bf16",
                fix="choose another precision or strategy for a model that is trained from scratch: strategy: full",
            )
        ]
    if wanted and needed and wanted != needed:
        return [
            Problem(
                f"model.precision is {wanted}, but the strategy {strategy.name!r} stores the base as {needed}",
                where="model.precision",
                fix=f"leave model.precision out, or choose a strategy for a {wanted} base",
            )
        ]
    if wanted in ("nf4", "int8") and not strategy.capabilities.quantized_base:
        trains_base = strategy.capabilities.changes_base
        reason = "trains the base itself, which cannot be stored" if trains_base else "does not work on weights stored"
        return [
            Problem(
                f"the strategy {strategy.name!r} {reason} as {wanted}",
                where="model.precision",
                allowed="bf16, fp32",
                fix="choose qlora or another strategy that leaves the base frozen",
            )
        ]
    return []
