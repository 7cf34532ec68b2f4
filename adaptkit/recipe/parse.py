"""From a recipe's text or values to a `Recipe`, and back to text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails

from adaptkit.errors import AdaptkitError, Problem, RecipeError
from adaptkit.recipe.document import Document, KeyPath, read_document
from adaptkit.recipe.overrides import apply_overrides
from adaptkit.recipe.problems import recipe_problems
from adaptkit.recipe.schema import Options, Recipe, StrategyOptions, TaskOptions
from adaptkit.recipe.stages import CHANGEABLE, STAGES, StagedRecipe, stage_documents
from adaptkit.recipe.yaml_text import dump

OptionsT = TypeVar("OptionsT", bound=Options)


class OptionsResolver(Protocol):
    """Knows which options a strategy and a task have, and what else has a name.

    A name that cannot be resolved is an `AdaptkitError`; its problems need no ``where``.
    """

    def strategy_options(self, name: str) -> type[StrategyOptions]:
        """Returns the Options class of a strategy."""
        ...

    def task_options(self, name: str) -> type[TaskOptions]:
        """Returns the Options class of a task."""
        ...

    def unknown_names(self, recipe: Recipe) -> Iterable[tuple[KeyPath, AdaptkitError]]:
        """Yields where a recipe names anything else that there is not, its optimizer for one, and what to say of it."""
        ...


class _UnknownStrategy(StrategyOptions):
    """Takes any option, so that the other problems of a recipe are found too."""

    model_config = ConfigDict(extra="allow")


class _UnknownTask(TaskOptions):
    """Takes any option, so that the other problems of a recipe are found too."""

    model_config = ConfigDict(extra="allow")


def load_recipe(
    path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = (), *, resolver: OptionsResolver
) -> Recipe:
    """Reads a YAML recipe.

    Args:
        path: Of the recipe.
        overrides: ``section.key=value`` texts, or values by dotted key; they win over the file.
        resolver: Gives the options of a strategy or a task by its name.

    Returns:
        The recipe; a `StagedRecipe` where it has stages.

    Raises:
        RecipeError: With every problem of the recipe and its place.
        AdaptkitError: What the resolver raised, if that is the only problem.
    """
    return _parse(apply_overrides(read_document(path), overrides), resolver, check_names=True)


def parse_recipe(values: Mapping[str, Any], *, resolver: OptionsResolver) -> Recipe:
    """Checks the values of a recipe, as `load_recipe` does, without a file.

    Raises:
        RecipeError: With every problem.
        AdaptkitError: What the resolver raised, if that is the only problem.
    """
    return _parse(Document(dict(values)), resolver, check_names=False)


def dump_recipe(recipe: Recipe) -> str:
    """Returns YAML with every key of the recipe, which `load_recipe` reads back to an equal one."""
    values = recipe.model_dump(mode="json", by_alias=True)
    if isinstance(recipe, StagedRecipe):
        stages = [_changes(stage) for stage in values.pop(STAGES)]
        values = {key: value for key, value in values.items() if CHANGEABLE.get(key, ()) is not None}
        values[STAGES] = stages
    return dump(values)


def _changes(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Returns of the values of a stage those that a stage may have."""
    return {
        key: stage[key] if inner is None else {name: stage[key][name] for name in inner}
        for key, inner in CHANGEABLE.items()
    }


def _parse(document: Document, resolver: OptionsResolver, *, check_names: bool) -> Recipe:
    if document.values.get(STAGES) is not None:
        return _parse_stages(document, resolver, check_names=check_names)
    recipe = _validate(document, resolver)
    names = resolver.unknown_names(recipe) if check_names else ()
    unknown = [_placed(error, document.where(path)) for path, error in names]
    if unknown:
        raise _in_order(document, unknown, [])
    return recipe


def _parse_stages(document: Document, resolver: OptionsResolver, *, check_names: bool) -> StagedRecipe:
    """Reads every stage as a recipe; what is wrong above them is wrong in each, and said once."""
    stages, errors = [], []
    for stage in stage_documents(document):
        try:
            stages.append(_parse(stage, resolver, check_names=check_names))
        except AdaptkitError as error:
            errors.append(error)
    if errors:
        raise _in_order(document, errors, [])
    return StagedRecipe(**dict(stages[-1]), stages=tuple(stages))


def _validate(document: Document, resolver: OptionsResolver) -> Recipe:
    unresolved: list[AdaptkitError] = []
    strategy: type[StrategyOptions] = _options(
        document, "strategy", resolver.strategy_options, _UnknownStrategy, unresolved
    )
    task: type[TaskOptions] = _options(document, "task", resolver.task_options, _UnknownTask, unresolved)
    stages = Field(None, description="Changes of the recipe, each run on what the one before has trained.")
    model = create_model(
        "ChosenRecipe", __base__=Recipe, strategy=(strategy, ...), task=(task, ...), stages=(None, stages)
    )
    errors = _errors(model, document.values)
    if errors or unresolved:
        raise _in_order(document, unresolved, recipe_problems(errors, model, document))
    checked = model.model_validate(document.values)
    return Recipe(**{name: getattr(checked, name) for name in Recipe.model_fields})


def _options(
    document: Document,
    section: str,
    look_up: Callable[[str], type[OptionsT]],
    unknown: type[OptionsT],
    unresolved: list[AdaptkitError],
) -> type[OptionsT]:
    """Returns the options class that a section names; without one, ``unknown``, and the reason in ``unresolved``."""
    value = document.values.get(section)
    name = value.get("name") if isinstance(value, Mapping) else value
    if not isinstance(name, str):
        return unknown
    try:
        return look_up(name)
    except AdaptkitError as error:
        unresolved.append(_placed(error, document.where((section, "name"))))
        return unknown


def _placed(error: AdaptkitError, where: str | None) -> AdaptkitError:
    return type(error)([replace(problem, where=problem.where or where) for problem in error.problems])


def _errors(model: type[Recipe], values: dict[str, Any]) -> list[ErrorDetails]:
    """Returns what is wrong, ``true`` and ``false`` in the place of a number included, which pydantic lets pass."""
    errors = _errors_of(model, values, strict=False)
    places = {error["loc"] for error in errors}
    strict = _errors_of(model, values, strict=True)
    return errors + [error for error in strict if isinstance(error["input"], bool) and error["loc"] not in places]


def _errors_of(model: type[Recipe], values: dict[str, Any], *, strict: bool) -> list[ErrorDetails]:
    try:
        model.model_validate(values, strict=strict)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _in_order(document: Document, unresolved: Sequence[AdaptkitError], problems: Sequence[Problem]) -> AdaptkitError:
    """Returns one error with every problem, in the order of the file; overrides come last."""
    order: dict[str | None, int] = {where: index for index, where in enumerate(document.positions.values())}
    found = list(dict.fromkeys([*(problem for error in unresolved for problem in error.problems), *problems]))
    found.sort(key=lambda problem: order.get(problem.where, -1))
    kinds = {type(error) for error in unresolved}
    return kinds.pop()(found) if len(kinds) == 1 and not problems else RecipeError(found)
