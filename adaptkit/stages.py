"""The stages of a recipe: complete runs, each of which starts from what the one before has trained, head included.

A probe and then the rest (Kumar et al. 2022, arXiv:2202.10054) is the reason: what trains first changes what the later
training does to the base.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Protocol

from adaptkit.artifact.folder import RunFolder, write_json
from adaptkit.artifact.merging import named
from adaptkit.errors import Problem, RecipeError, RunInterruptedError
from adaptkit.models.base.family import local_family
from adaptkit.models.compatibility import check_compatibility
from adaptkit.recipe import ModelSpec, Recipe, StagedRecipe

if TYPE_CHECKING:
    from rich.console import Console

    from adaptkit.artifact.run import Run
    from adaptkit.registry import Registry
    from adaptkit.task import Task


# PEFT's names of the tasks whose heads read the last hidden states.
HALVES = ("SEQ_CLS", "TOKEN_CLS")


class RunOne(Protocol):
    """Runs a recipe that has no stages, and returns the finished run."""

    def __call__(self, recipe: Recipe, *, resume: bool, shows_rows: bool) -> Run:
        """Begins the run in the recipe's output folder, or goes on with it; perhaps shows the rows first."""
        ...


def chained(recipe: StagedRecipe) -> list[Recipe]:
    """Returns the stages as recipes of their own: each in a folder of its own, its base the stage before."""
    runs: list[Recipe] = []
    for number, stage in enumerate(recipe.stages, 1):
        folder = Path(recipe.output) / f"{number}-{stage.strategy.name.replace(':', '-')}"
        changes: dict[str, Any] = {"output": str(folder)}
        if runs:
            changes["model"] = ModelSpec(name=runs[-1].output, head="keep", precision=stage.model.precision)
        runs.append(stage.model_copy(update=changes))
    return runs


def check_stages(recipe: StagedRecipe, task: Task[Any], registry: Registry) -> None:
    """Checks every stage before the first one runs.

    Raises:
        RecipeError: The parts of a stage do not go together, or one that others follow cannot be a base.
    """
    family = local_family(recipe.stages[0].model.name)
    problems = []
    for index, stage in enumerate(chained(recipe)):
        strategy = registry.strategy(stage.strategy.name)(stage.strategy)
        try:
            check_compatibility(stage, strategy, task, family, tasks=[entry.value for entry in registry.tasks.values()])
        except RecipeError as error:
            problems += [replace(problem, where=f"stages.{index}: {problem.where}") for problem in error.problems]
        if index < len(recipe.stages) - 1 and not strategy.capabilities.mergeable:
            problems.append(_no_base(index, strategy.name, registry))
    if len(recipe.stages) > 1 and family == "encoder-decoder" and task.peft_task_type in HALVES:
        problems += _half(task)
    if problems:
        raise RecipeError(problems)


def run_stages(recipe: StagedRecipe, run_one: RunOne, console: Console, *, resume: bool) -> Run:
    """Runs the stages that are not finished yet, and returns the last.

    Args:
        recipe: As it stands in its folder.
        run_one: Runs a stage.
        console: Where progress is reported.
        resume: Keep what is finished, and continue the stage that was interrupted.

    Raises:
        RunInterruptedError: A signal asked for a stop; the stage that it met is saved.
    """
    whole, stages = RunFolder(Path(recipe.output)), chained(recipe)
    write_json(whole.stages, {"stages": [Path(stage.output).name for stage in stages]})
    shows_rows = True  # all stages read the same ones
    for number, stage in enumerate(stages, 1):
        folder = RunFolder(Path(stage.output))
        begun = resume and folder.recipe.is_file()
        if number < len(stages) and begun and folder.results.is_file():
            continue
        console.print(f"stage {number} of {len(stages)}: {stage.strategy.name}", highlight=False, markup=False)
        if not begun:
            folder.release()
        try:
            last = run_one(stage, resume=begun, shows_rows=shows_rows)
            shows_rows = False
        except RunInterruptedError as error:
            fix = f"continue with: adaptkit run {quote(str(whole.recipe))} --resume"
            raise RunInterruptedError([replace(problem, fix=fix) for problem in error.problems]) from error
        except BaseException:
            if not resume:
                whole.release()
            raise
    return last


def _half(task: Task[Any]) -> list[Problem]:
    """Returns the problem of a head over the encoder alone of an encoder-decoder: half a model is no base."""
    if getattr(task.options, "pooling", None) == "native":
        return []
    found = f"{task.name} trains the encoder alone of an encoder-decoder, which no next stage can start from"
    return [Problem(found, "stages", fix="take the stages away, or choose an encoder: model: assets/minilm")]


def _no_base(index: int, name: str, registry: Registry) -> Problem:
    able = sorted(other for other, entry in registry.strategies.items() if entry.value.capabilities.mergeable)
    return Problem(
        f"no stage can follow {name!r}: what it trains cannot become part of its base's weights",
        f"stages.{index}.strategy",
        f"in front of another stage: {named(able)}",
        "put it last, or choose another strategy for this stage",
    )
