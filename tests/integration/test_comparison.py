"""Strategies side by side: each in a process of its own, nothing run twice, nothing begun that cannot end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adaptkit.comparison import Comparison, Result, compare
from adaptkit.errors import RecipeError
from adaptkit.recipe import Recipe, dump_recipe

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def recipe_file(recipe: MakeRecipe, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe("full", output="compared", max_steps=2)), encoding="utf-8")
    return path


def test_every_strategy_and_seed_is_run_once_and_measured(recipe_file: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    first = compare(recipe_file, ["linear-probe"], seeds=[0, 1], report=lines.append)
    assert [(result.strategy, result.seed) for result in first.results] == [("linear-probe", 0), ("linear-probe", 1)]
    assert all(result.trainable_parameters == 130 and result.seconds > 0 for result in first.results)
    assert all(0 <= result.metrics["accuracy"] <= 1 for result in first.results)
    assert sum(line.startswith("running") for line in lines) == 2
    lines.clear()
    again = compare(recipe_file, ["linear-probe"], seeds=[0, 1], report=lines.append)
    assert again == first
    assert not any(line.startswith("running") for line in lines)
    written = json.loads((tmp_path / "compared" / "comparison.json").read_text(encoding="utf-8"))
    assert [run["seed"] for run in written["results"]] == [0, 1]


def test_a_finished_run_of_another_recipe_is_not_taken_for_this_one(recipe_file: Path) -> None:
    compare(recipe_file, ["linear-probe"])
    with pytest.raises(RecipeError, match="not the one that the run began with") as caught:
        compare(recipe_file, ["linear-probe"], overrides=["training.max_steps=3"])
    assert "max_steps: 2" in str(caught.value)


def test_an_unknown_strategy_stops_the_comparison_before_its_first_run(recipe_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="unknown strategy 'lroa'"):
        compare(recipe_file, ["linear-probe", "lroa"])
    assert not (tmp_path / "compared").exists()


@pytest.mark.parametrize(("strategies", "seeds"), [([], [0]), (["lora"], [])])
def test_a_comparison_of_nothing_is_an_error(recipe_file: Path, strategies: list[str], seeds: list[int]) -> None:
    with pytest.raises(RecipeError, match="at least one strategy and one seed"):
        compare(recipe_file, strategies, seeds=seeds)


def test_the_table_has_the_best_strategy_first_whichever_way_is_better() -> None:
    def result(strategy: str, seed: int, loss: float) -> Result:
        return Result(strategy, seed, {"loss": loss}, 10, 2**30, 5.0, 1_000_000)

    results = (result("a", 0, 0.5), result("a", 1, 0.7), result("b", 0, 0.9))
    lower, higher = Comparison("loss", False, results), Comparison("loss", True, results)
    assert [row[0] for row in lower.rows()] == ["strategy", "a", "b"]
    assert [row[0] for row in higher.rows()] == ["strategy", "b", "a"]
    assert lower.rows()[1][1:] == ["0.600 ± 0.141", "10", "1.00 GiB", "5", "1.00 MB"]
