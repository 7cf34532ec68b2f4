"""``stages:`` of a recipe: each of them read as a whole recipe, what it changes laid over what stands above."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from adaptkit.errors import Problem, RecipeError, did_you_mean
from adaptkit.recipe.document import Document, KeyPath
from adaptkit.recipe.schema import Recipe

STAGES = "stages"
# What a stage may change: how is learned, not what. None: the section as a whole.
CHANGEABLE: Mapping[str, tuple[str, ...] | None] = {
    "strategy": None,
    "training": None,
    "model": ("precision",),
    "data": ("max_length",),
}
ALLOWED = ", ".join(key if inner is None else f"{key}.{inner[0]}" for key, inner in CHANGEABLE.items())


class StagedRecipe(Recipe):
    """Several runs, each of which starts from what the one before has trained.

    Its own ``strategy``, ``training``, ``model`` and ``data`` are those of the last stage.
    """

    stages: tuple[Recipe, ...] = Field(min_length=1)


def stage_documents(document: Document) -> list[Document]:
    """Returns each stage of a document as a recipe of its own, every key with its place in the file.

    Raises:
        RecipeError: ``stages`` is no list of sections, one of them lacks a strategy, or changes what is the same for
            all; every problem at once.
    """
    stages = document.values[STAGES]
    problems = []
    if document.values.get("strategy") is not None:
        problems.append(
            Problem(
                "a recipe with stages has no strategy of its own: each stage has one",
                document.where(("strategy",)),
                fix="name it in a stage (stages.0.strategy=NAME), or run without them (stages=null strategy=NAME)",
            )
        )
    if not isinstance(stages, list) or not stages:
        found = "stages must be a list of sections, one a stage"
        problems.append(Problem(found, document.where((STAGES,)), fix="for example - {strategy: lora}"))
        raise RecipeError(problems)
    for index, stage in enumerate(stages):
        problems += _problems(document, index, stage)
    if problems:
        raise RecipeError(problems)
    return [_merged(document, index) for index in range(len(stages))]


def _problems(document: Document, index: int, stage: Any) -> list[Problem]:
    where = document.where((STAGES, index))
    if not isinstance(stage, dict):
        return [Problem(f"stages[{index}] is no section with keys", where, ALLOWED, "for example - {strategy: lora}")]
    problems = []
    if stage.get("strategy") is None:
        problems.append(Problem(f"stages[{index}] names no strategy", where, fix="add strategy: NAME to it"))
    if _strategy_name(stage) == "auto":
        fix = "name it; `adaptkit plan RECIPE --all-strategies` shows which fit"
        problems.append(Problem(f"stages[{index}] leaves its strategy open", where, "the name of a strategy", fix))
    for path in _changed(stage):
        if not _may_change(path):
            name = ".".join(path)
            problems.append(
                Problem(
                    f"a stage cannot change {name}",
                    document.where((STAGES, index, *path)),
                    ALLOWED,
                    _fix(path, name),
                )
            )
    return problems


def _strategy_name(stage: Mapping[str, Any]) -> Any:
    strategy = stage.get("strategy")
    return strategy.get("name") if isinstance(strategy, dict) else strategy


def _changed(stage: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns the key paths of a stage, of one key or two; ``model: x`` is short for its name."""
    paths: list[tuple[str, ...]] = []
    for key, value in stage.items():
        if CHANGEABLE.get(key) is None or not isinstance(value, dict):
            paths.append((key,))
        else:
            paths += [(key, inner) for inner in value]
    return paths


def _may_change(path: tuple[str, ...]) -> bool:
    inner = CHANGEABLE.get(path[0], ())
    return inner is None or (len(path) == 2 and path[1] in inner)


def _fix(path: tuple[str, ...], name: str) -> str:
    known = (*Recipe.model_fields, *CHANGEABLE)
    if path[0] not in known:
        return did_you_mean(path[0], known) or f"remove {name!r}"
    return "say it above the stages; or run a recipe of its own that starts from the run before it, model: runs/NAME"


def _merged(document: Document, index: int) -> Document:
    values = {key: value for key, value in document.values.items() if key != STAGES}
    positions = {path: where for path, where in document.positions.items() if path[:1] != (STAGES,)}
    for key, value in document.values[STAGES][index].items():
        above = values.get(key)
        if isinstance(above, str) and key == "model":
            above = {"name": above}
        values[key] = {**above, **value} if isinstance(above, dict) and isinstance(value, dict) else value
    own: dict[KeyPath, str] = {
        path[2:]: where for path, where in document.positions.items() if path[:2] == (STAGES, index) and path[2:]
    }
    return Document(values, {**positions, **own})
