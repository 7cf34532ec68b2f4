"""From a recipe to a run: checks, builds, trains, evaluates, saves."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Console

from adaptkit.artifact.card import model_card
from adaptkit.artifact.folder import RunFolder, last_stage, write_json, write_text
from adaptkit.artifact.merging import check_base, check_head, on_plain_model
from adaptkit.artifact.run import Run
from adaptkit.data.splits import fingerprints, load_splits
from adaptkit.errors import RecipeError
from adaptkit.models.base.family import local_family
from adaptkit.models.compatibility import check_compatibility
from adaptkit.planning import as_settled, make_planner, settle_memory
from adaptkit.recipe import Recipe, StagedRecipe, dump_recipe, load_recipe
from adaptkit.registry import AutoOptions, Registry, load_registry
from adaptkit.stages import check_stages, run_stages

if TYPE_CHECKING:
    from adaptkit.memory.planner import Planner
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
    """Runs a recipe and returns the finished run; of a recipe with stages that of the last.

    Args:
        recipe: A recipe or its file.
        overrides: ``{"strategy.name": "lora"}`` or ``["strategy.name=lora"]``.
        resume: Continue the run in the output folder from its last checkpoint.
        new: Where the output folder exists, take the next free name beside it.
        console: Where progress is reported; default: standard output.

    Raises:
        AdaptkitError: Its children say what is wrong and what to do.
    """
    registry = load_registry()
    recipe = resolve(recipe, overrides, registry)
    if new and not resume:
        recipe = recipe.model_copy(update={"output": str(RunFolder(Path(recipe.output)).next_free().path)})
    console = console or Console()
    if not isinstance(recipe, StagedRecipe):
        return _run(recipe, registry, console, resume=resume)
    folder = RunFolder(Path(recipe.output))
    check(recipe, *choose(recipe, registry), registry)
    with _opened(folder, resume=resume):
        written, _ = _begin(recipe, registry, folder, console, resume=resume)
        assert isinstance(written, StagedRecipe)
        return run_stages(written, partial(_run, registry=registry, console=console), console, resume=resume)


def _run(recipe: Recipe, registry: Registry, console: Console, *, resume: bool, shows_rows: bool = True) -> Run:
    """Runs a recipe that has no stages."""
    started = time.monotonic()
    folder = RunFolder(Path(recipe.output))
    strategy, task = choose(recipe, registry)
    splits, data = check(recipe, strategy, task, registry), fingerprints(recipe.data)
    with _opened(folder, resume=resume):
        recipe, planner = _begin(recipe, registry, folder, console, splits, resume=resume)
        assert planner is not None  # there are rows
        strategy = registry.strategy(recipe.strategy.name)(recipe.strategy)  # that may have been left to the memory
        from adaptkit.session import Session

        if folder.results.is_file():
            logger.warning("the run in %s is finished: there is nothing to resume", folder.path)
            return Run(folder.path)
        session = Session(
            recipe=recipe,
            registry=registry,
            strategy=strategy,
            task=task,
            splits=splits,
            planner=planner,
            data=data,
            folder=folder,
            console=console,
            shows_rows=shows_rows,
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
    if isinstance(recipe, StagedRecipe):  # all of which read the same rows
        recipe = recipe.stages[0]
        strategy, _ = choose(recipe, registry)
    from adaptkit.reporting.preview import preview_lines
    from adaptkit.training.preparation import prepare

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer"
        prepared = prepare(on_plain_model(recipe), strategy, task, splits, tokenizer_folder=tokenizer)
        return preview_lines(task, splits, prepared, examples=examples)


def resolve(recipe: str | Path | Recipe, overrides: Mapping[str, Any] | Sequence[str], registry: Registry) -> Recipe:
    """Returns a recipe with the strategy's learning rate filled in where it names none.

    A base that is a run with stages becomes the last of them.
    """
    if isinstance(recipe, Recipe):
        if overrides:
            raise RecipeError("overrides go with a recipe file", fix="change the Recipe object: recipe.model_copy(…)")
        parsed = recipe
    else:
        parsed = load_recipe(recipe, overrides, resolver=registry)
    return _each(parsed, partial(_resolved, registry=registry))


def _each(recipe: Recipe, change: Callable[[Recipe], Recipe]) -> Recipe:
    """Returns a recipe changed; of one with stages every stage."""
    if not isinstance(recipe, StagedRecipe):
        return change(recipe)
    stages = tuple(change(stage) for stage in recipe.stages)
    return StagedRecipe(**{**dict(stages[-1]), "output": recipe.output, "stages": stages})


def _resolved(recipe: Recipe, registry: Registry) -> Recipe:
    base = str(last_stage(Path(recipe.model.name)))
    if base != str(Path(recipe.model.name)):
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": base})})
    family = local_family(recipe.model.name)
    if recipe.training.learning_rate is not None or family is None or isinstance(recipe.strategy, AutoOptions):
        return recipe
    rate = registry.strategy(recipe.strategy.name)(recipe.strategy).learning_rate(family)
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"learning_rate": rate})})


def settled(recipe: Recipe, registry: Registry) -> Recipe:
    """Returns a recipe as a run on this machine writes it down, its precision and arithmetic chosen. Imports torch."""
    from adaptkit.models.precision import settle

    return _each(recipe, lambda one: settle(one, registry.strategy(one.strategy.name)(one.strategy)))


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
        resumed = f"adaptkit run {quote(str(folder.recipe))} --resume"
        raise RecipeError(
            "the recipe is not the one that the run began with",
            where=str(folder.recipe),
            allowed="the same recipe: " + "; ".join(line.strip() for line in changed[:6]) + " differ",
            fix=f"resume with the run's own recipe: {resumed}, or start a new run",
        )


def check_begun_with(folder: RunFolder, recipe: Recipe, registry: Registry) -> None:
    """Makes sure that a run is that of a recipe which may leave settings to the memory. Imports torch.

    Raises:
        RecipeError: It began with another one.
    """
    if not isinstance(recipe, StagedRecipe):
        recipe = as_settled(recipe, load_recipe(folder.recipe, resolver=registry))
    check_same(folder, settled(recipe, registry))


def choose(recipe: Recipe, registry: Registry) -> tuple[Strategy[Any], Task[Any]]:
    """Returns the strategy and the task that a recipe names; of one with stages the last strategy."""
    for one in recipe.stages if isinstance(recipe, StagedRecipe) else (recipe,):
        for _, error in registry.unknown_names(one):
            raise error
    options: Any = recipe.strategy
    if isinstance(options, AutoOptions):  # until the memory has decided, the one that is preferred
        options = registry.strategy_options(options.among[0])(name=options.among[0])
    return registry.strategy(options.name)(options), registry.make_task(recipe.task)


def check(recipe: Recipe, strategy: Strategy[Any], task: Task[Any], registry: Registry) -> Splits:
    """Checks all that can be checked before a model is loaded, and returns the rows.

    Raises:
        RecipeError: The parts do not go together.
        DataError: Rows that cannot be used.
    """
    if isinstance(recipe, StagedRecipe):
        check_stages(recipe, task, registry)
    else:
        check_compatibility(recipe, strategy, task, tasks=[entry.value for entry in registry.tasks.values()])
    check_base(recipe.model)
    splits = load_splits(recipe.data, task, registry.format_classes())
    task.prepare(splits, recipe.data)
    check_head(recipe.model, task)
    return splits


def _begin(
    recipe: Recipe,
    registry: Registry,
    folder: RunFolder,
    console: Console,
    splits: Splits | None = None,
    *,
    resume: bool,
) -> tuple[Recipe, Planner | None]:
    """Returns the recipe of a run as it stands in its folder, which is this process's, and what has planned it.

    A failure gives the folder of a new run up.

    Args:
        recipe: May leave settings to the memory.
        registry: Of all that is installed.
        folder: Of the run.
        console: Where progress is reported.
        splits: The rows, by which such settings are chosen; None: stages of their own do that.
        resume: Whether the run goes on.
    """
    if resume and splits is not None:
        recipe = as_settled(recipe, load_recipe(folder.recipe, resolver=registry))
    try:
        recipe, planner = _load_libraries(recipe, registry, folder, console, splits)
        if resume:
            check_same(folder, recipe)
        else:
            write_text(folder.recipe, dump_recipe(recipe))
    except BaseException:
        if not resume:
            folder.release()
        raise
    return recipe, planner


def _load_libraries(
    recipe: Recipe, registry: Registry, folder: RunFolder, console: Console, splits: Splits | None
) -> tuple[Recipe, Planner | None]:
    """Imports all that a run needs, and returns its recipe as it is written down, and what has planned it."""
    with console.status("loading the libraries"):
        import adaptkit.session  # noqa: F401

    planner = None
    if splits is not None:
        planner = make_planner(registry, splits, tokenizer_folder=folder.tokenizer)
        with console.status("planning the memory"):
            recipe, lines = settle_memory(recipe, planner)
        for line in lines:
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    return settled(recipe, registry), planner


def _train(session: Session, *, resume: bool) -> dict[str, Any]:
    try:
        return session.train(resume=resume)
    except BaseException as error:
        session.registry.fire_error(session.info, error)
        if not resume:
            session.folder.release()
        raise


def _opened(folder: RunFolder, *, resume: bool) -> AbstractContextManager[None]:
    """Keeps other runs out of a folder: one that a new run claims, or that holds one to be resumed."""
    return folder.resumed() if resume else folder.claimed()
