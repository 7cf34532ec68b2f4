"""From a recipe to a run: checks, builds, trains, evaluates, saves."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from adaptkit.artifact.card import model_card
from adaptkit.artifact.folder import RunFolder, write_json, write_text
from adaptkit.artifact.merging import check_base, on_plain_model
from adaptkit.artifact.run import Run
from adaptkit.data.splits import fingerprints, load_splits
from adaptkit.errors import RecipeError
from adaptkit.models.compatibility import check_compatibility
from adaptkit.models.family import local_family
from adaptkit.recipe import Recipe, dump_recipe, load_recipe
from adaptkit.registry import Registry, load_registry

if TYPE_CHECKING:
    from adaptkit.session import Session
    from adaptkit.strategy import Strategy
    from adaptkit.task import Splits, Task

logger = logging.getLogger("adaptkit")


def run(
    recipe: str | Path | Recipe,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    resume: bool = False,
    new: bool = False,
    console: Console | None = None,
) -> Run:
    """Runs a recipe and returns the finished run.

    Args:
        recipe: A recipe or its file.
        overrides: ``{"strategy.name": "lora"}`` or ``["strategy.name=lora"]``.
        resume: Continue the run in the output folder from its last checkpoint.
        new: Where the output folder exists, take the next free name beside it.
        console: Where progress is reported; default: standard output.

    Raises:
        AdaptkitError: Its children say what is wrong and what to do.
    """
    started = time.monotonic()
    registry = load_registry()
    recipe = resolve(recipe, overrides, registry)
    folder = RunFolder(Path(recipe.output))
    if new and not resume:
        folder = folder.next_free()
        recipe = recipe.model_copy(update={"output": str(folder.path)})
    strategy, task = choose(recipe, registry)
    splits, data = check(recipe, strategy, task, registry), fingerprints(recipe.data)
    _open_folder(folder, resume=resume)
    console = console or Console()
    recipe = _load_libraries(recipe, registry, folder, console, resume=resume)
    from adaptkit.session import Session

    if resume:
        check_same(folder, recipe)
        if folder.results.is_file():
            logger.warning("the run in %s is finished: there is nothing to resume", folder.path)
            return Run(folder.path)
    else:
        write_text(folder.recipe, dump_recipe(recipe))

    session = Session(
        recipe=recipe,
        registry=registry,
        strategy=strategy,
        task=task,
        splits=splits,
        data=data,
        folder=folder,
        console=console,
    )
    results = _train(session, resume=resume)
    results["seconds"] = session.seconds_before + time.monotonic() - started
    write_text(folder.card, model_card(recipe, results, str(folder.path)))
    write_json(folder.results, results)
    registry.fire("adaptkit_train_end", run=session.info)
    return Run(folder.path)


def preview(
    recipe: str | Path | Recipe, overrides: Mapping[str, Any] | Sequence[str] = (), *, examples: int = 3
) -> list[str]:
    """Returns lines that show what the model will see of the data; neither loads the model nor writes anything.

    Args:
        recipe: A recipe or its file.
        overrides: As for `run`.
        examples: How many training rows are shown as the model reads them.

    Raises:
        AdaptkitError: As `run` does before it loads the model.
    """
    registry = load_registry()
    recipe = resolve(recipe, overrides, registry)
    strategy, task = choose(recipe, registry)
    splits = check(recipe, strategy, task, registry)
    from adaptkit.reporting.preview import preview_lines
    from adaptkit.training.preparation import prepare

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer"
        prepared = prepare(on_plain_model(recipe), strategy, task, splits, tokenizer_folder=tokenizer)
        return preview_lines(task, splits, prepared, examples=examples)


def resolve(recipe: str | Path | Recipe, overrides: Mapping[str, Any] | Sequence[str], registry: Registry) -> Recipe:
    """Returns a recipe with the strategy's learning rate filled in where it names none."""
    if isinstance(recipe, Recipe):
        if overrides:
            raise RecipeError("overrides go with a recipe file", fix="change the Recipe object: recipe.model_copy(…)")
        parsed = recipe
    else:
        parsed = load_recipe(recipe, overrides, resolver=registry)
    if parsed.training.learning_rate is not None:
        return parsed
    family = local_family(parsed.model.name)
    if family is None:
        return parsed
    rate = registry.strategy(parsed.strategy.name)(parsed.strategy).learning_rate(family)
    training = parsed.training.model_copy(update={"learning_rate": rate})
    return parsed.model_copy(update={"training": training})


def settled(recipe: Recipe, registry: Registry) -> Recipe:
    """Returns a recipe as a run on this machine writes it down, its precision and arithmetic chosen. Imports torch."""
    from adaptkit.models.precision import settle

    return settle(recipe, registry.strategy(recipe.strategy.name)(recipe.strategy))


def check_same(folder: RunFolder, recipe: Recipe) -> None:
    """Makes sure that a run is that of a recipe.

    Args:
        folder: Of the run.
        recipe: As `settled` returns it.

    Raises:
        RecipeError: It began with another one.
    """
    written = folder.recipe.read_text(encoding="utf-8")
    if written != dump_recipe(recipe):
        changed = sorted(set(dump_recipe(recipe).splitlines()) ^ set(written.splitlines()))
        raise RecipeError(
            "the recipe is not the one that the run began with",
            where=str(folder.recipe),
            allowed="the same recipe: " + "; ".join(line.strip() for line in changed[:6]) + " differ",
            fix=f"resume with the run's own recipe: adaptkit run {folder.recipe} --resume, or start a new run",
        )


def choose(recipe: Recipe, registry: Registry) -> tuple[Strategy[Any], Task[Any]]:
    """Returns the strategy and the task that a recipe names."""
    for _, error in registry.unknown_names(recipe):
        raise error
    strategy = registry.strategy(recipe.strategy.name)(recipe.strategy)
    return strategy, registry.make_task(recipe.task)


def check(recipe: Recipe, strategy: Strategy[Any], task: Task[Any], registry: Registry) -> Splits:
    """Checks all that can be checked before a model is loaded, and returns the rows.

    Raises:
        RecipeError: The parts do not go together.
        DataError: Rows that cannot be used.
    """
    check_compatibility(recipe, strategy, task, tasks=[entry.value for entry in registry.tasks.values()])
    check_base(recipe.model)
    splits = load_splits(recipe.data, task, registry.format_classes())
    task.prepare(splits, recipe.data)
    return splits


def _load_libraries(recipe: Recipe, registry: Registry, folder: RunFolder, console: Console, *, resume: bool) -> Recipe:
    """Imports all that a run needs, and returns its recipe as it is written down; a failure gives the folder up."""
    try:
        with console.status("loading the libraries"):
            import adaptkit.session  # noqa: F401

            return settled(recipe, registry)
    except BaseException:
        if not resume:
            folder.release()
        raise


def _train(session: Session, *, resume: bool) -> dict[str, Any]:
    try:
        return session.train(resume=resume)
    except BaseException as error:
        session.registry.fire_error(session.info, error)
        if not resume:
            session.folder.release()
        raise


def _open_folder(folder: RunFolder, *, resume: bool) -> None:
    """Claims the folder for a new run, or makes sure that it holds one to be resumed."""
    if not resume:
        folder.claim()
    elif not folder.recipe.is_file():
        raise RecipeError(
            f"there is no run to resume in {str(folder.path)!r}",
            where="output",
            fix="start it without --resume, or name the folder of the run: output=runs/NAME",
        )
