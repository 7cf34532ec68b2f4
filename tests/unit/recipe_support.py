"""Strategies, tasks and recipes for the tests of recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from adaptkit.errors import AdaptkitError, PluginError, RecipeError
from adaptkit.recipe import Recipe, StrategyOptions, TaskOptions, load_recipe, parse_recipe


class Lora(StrategyOptions):
    r: int = Field(16, ge=1, description="Rank of the update.")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] = "all-linear"
    bias: bool = False
    ranks: dict[str, int] = Field(default_factory=dict)


class Prefix(StrategyOptions):
    tokens: int = Field(ge=1)


class Classification(TaskOptions):
    labels: list[str] | None = None


STRATEGIES: dict[str, type[StrategyOptions]] = {"full": StrategyOptions, "lora": Lora, "prefix": Prefix}
TASKS: dict[str, type[TaskOptions]] = {"text-classification": Classification, "sft": TaskOptions}


class Resolver:
    def strategy_options(self, name: str) -> type[StrategyOptions]:
        if name == "broken":
            raise PluginError("the plugin of 'broken' did not load")
        if name not in STRATEGIES:
            raise RecipeError(f"unknown strategy {name!r}", allowed=", ".join(STRATEGIES))
        return STRATEGIES[name]

    def task_options(self, name: str) -> type[TaskOptions]:
        if name not in TASKS:
            raise RecipeError(f"unknown task {name!r}", allowed=", ".join(TASKS))
        return TASKS[name]

    def unknown_names(self, recipe: Recipe) -> Iterator[tuple[tuple[str | int, ...], AdaptkitError]]:
        for index, name in enumerate(recipe.trackers):
            if name != "paper":
                yield ("trackers", index), RecipeError(f"unknown tracker {name!r}", allowed="paper")


RESOLVER = Resolver()
GOOD = """\
model: assets/minilm
task: text-classification
data:
  train: train.jsonl
strategy: {name: lora, r: 8}
training:
  epochs: 2
output: runs/one
"""


def load(path: Path, text: str = GOOD, overrides: Any = ()) -> Recipe:
    """Writes a text and loads it."""
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides, resolver=RESOLVER)


def problems(path: Path, text: str = GOOD, overrides: Any = ()) -> dict[str, Any]:
    """Loads a recipe that is wrong and returns its problems by place, the file's name left out."""
    try:
        load(path, text, overrides)
    except AdaptkitError as error:
        return {str(problem.where).replace(str(path), ""): problem for problem in error.problems}
    raise AssertionError("the recipe was accepted")


def minimal(**changes: Any) -> dict[str, Any]:
    """Returns the values of a good recipe with some sections replaced."""
    return {
        "model": "base",
        "task": "text-classification",
        "data": {"train": "train.jsonl"},
        "strategy": "lora",
        "output": "runs/one",
        **changes,
    }


def parse(**changes: Any) -> Recipe:
    """Parses the values of `minimal`."""
    return parse_recipe(minimal(**changes), resolver=RESOLVER)


def outcome(read: Callable[[], Any]) -> Any:
    """Returns what a call gives: a value, or the error that it raises on purpose."""
    try:
        return read()
    except AdaptkitError as error:
        return error
