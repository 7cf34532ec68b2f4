"""The step with the best evaluation is what is kept, and a run that gets no better ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from adaptkit import runner
from adaptkit.artifact.run import Run
from adaptkit.recipe import Recipe

MakeRecipe = Callable[..., Recipe]
EVERY_STEP = 1 / tiny.STEPS_PER_EPOCH


def evaluations(run: Run) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line.pop("step"): line for line in lines if "eval/loss" in line}


def checkpoints(run: Run) -> set[str]:
    return {path.name for path in (Path(run.directory) / "checkpoints").iterdir()}


@pytest.mark.parametrize("strategy", ["full", "lora", "linear-probe"])
def test_the_best_step_is_kept_although_training_went_on(strategy: str, recipe: MakeRecipe) -> None:
    run = runner.run(recipe(strategy, learning_rate=3e-2, evaluate_every=EVERY_STEP, max_steps=10))
    seen = evaluations(run)
    best = max(seen, key=lambda step: (seen[step]["eval/accuracy"], -step))
    assert best < 10, "the test is of no use when the last step is the best"
    assert run.results["kept_step"] == best
    assert run.results["steps"] == 10
    assert run.metrics == seen[best]
    assert {f"eval/{name}": value for name, value in run.evaluate().items()} == seen[best]
    assert checkpoints(run) == {f"step-{best:08d}", "step-00000010"}


def test_the_last_step_is_kept_where_nothing_is_evaluated(recipe: MakeRecipe) -> None:
    chosen = recipe("linear-probe", max_steps=4)
    run = runner.run(recipe("linear-probe", data={"train": chosen.data.train}, max_steps=4))
    assert run.results["kept_step"] == 4
    assert run.metrics == {}


def test_a_run_that_gets_no_better_stops_early(recipe: MakeRecipe) -> None:
    still = {"learning_rate": 1e-12, "evaluate_every": EVERY_STEP, "max_steps": 20}
    run = runner.run(recipe("linear-probe", early_stopping=3, **still))
    assert list(evaluations(run)) == [1, 2, 3, 4]
    assert run.results["kept_step"] == 1


def test_without_patience_a_run_goes_to_its_end(recipe: MakeRecipe) -> None:
    run = runner.run(recipe("linear-probe", learning_rate=1e-12, max_steps=8))
    assert run.results["steps"] == 8


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_last_checkpoints_stay_besides_the_best(keep: int, recipe: MakeRecipe) -> None:
    training = {"learning_rate": 1e-12, "save_every": EVERY_STEP, "evaluate_every": EVERY_STEP, "max_steps": 6}
    run = runner.run(recipe("linear-probe", keep_checkpoints=keep, **training))
    assert checkpoints(run) == {f"step-{step:08d}" for step in {1, *range(7 - keep, 7)}}
