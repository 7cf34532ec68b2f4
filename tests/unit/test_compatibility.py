"""Parts that do not go together are refused before anything is loaded, all of them at once."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from adaptkit.errors import RecipeError
from adaptkit.models.compatibility import check_compatibility
from adaptkit.recipe import Recipe, StrategyOptions, TaskOptions
from adaptkit.strategy import Capabilities, Family, Strategy
from adaptkit.task import TaskCapabilities


class Task:
    name = "sorting"
    capabilities: ClassVar = TaskCapabilities(families=frozenset({"encoder", "decoder"}))


def strategy(precision: str | None = None, **capabilities: Any) -> Any:
    class Made(Strategy[StrategyOptions]):
        name = "made"

        def adapt(self, model: Any, context: Any) -> Any:
            return model

        def base_precision(self) -> Any:
            return precision

    Made.capabilities = Capabilities(**capabilities)
    return Made(StrategyOptions(name="made"))


def problems(made: Any, family: Family | None = "encoder", **changes: Any) -> list[str]:
    values = {"model": {"name": "base"}, "task": TaskOptions(name="sorting"), "data": {"train": "rows.jsonl"}}
    recipe = Recipe(**{**values, "strategy": StrategyOptions(name="made"), "output": "runs/one", **changes})  # type: ignore[arg-type]
    task: Any = Task()
    try:
        check_compatibility(recipe, made, task, family)
    except RecipeError as error:
        return [problem.found for problem in error.problems]
    return []


def test_what_fits_passes() -> None:
    assert problems(strategy()) == []
    assert problems(strategy("nf4"), model={"name": "base", "precision": "nf4"}) == []
    assert problems(strategy(tasks=frozenset({"sorting"}))) == []


def test_an_unknown_family_is_left_for_later() -> None:
    assert problems(strategy(families=frozenset({"decoder"})), family=None) == []


@pytest.mark.parametrize(
    ("made", "changes", "part"),
    [
        (strategy(families=frozenset({"decoder"})), {}, "does not work with encoder models"),
        (strategy(), {"family": "encoder-decoder"}, "the task 'sorting' does not work with encoder-decoder"),
        (strategy(tasks=frozenset({"chat"})), {}, "does not serve the task 'sorting'"),
        (strategy("nf4"), {"model": {"name": "base", "precision": "bf16"}}, "stores the base as nf4"),
        (strategy(quantized_base=False), {"model": {"name": "base", "precision": "int8"}}, "on weights stored as int8"),
        (
            strategy(quantized_base=False, changes_base=True),
            {"model": {"name": "base", "precision": "nf4"}},
            "trains the base itself, which cannot be stored as nf4",
        ),
        (strategy(gradient_checkpointing=False), {"training": {"gradient_checkpointing": True}}, "checkpointing"),
    ],
)
def test_what_does_not_fit_is_one_problem(made: Any, changes: dict[str, Any], part: str) -> None:
    (found,) = problems(made, **changes)
    assert part in found


def test_a_task_that_writes_needs_a_strategy_under_which_a_model_can(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(strategy(generates=False)) == []
    writes = TaskCapabilities(families=frozenset({"encoder"}), generates=True)
    monkeypatch.setattr(Task, "capabilities", writes)
    assert problems(strategy()) == []
    (found,) = problems(strategy(generates=False))
    assert "writes texts" in found


def test_all_problems_come_at_once() -> None:
    made = strategy(families=frozenset({"decoder"}), tasks=frozenset({"chat"}), gradient_checkpointing=False)
    assert len(problems(made, training={"gradient_checkpointing": True})) == 3
