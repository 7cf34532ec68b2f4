"""A run that was stopped, at whatever moment and however hard, goes on as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from forked_runs import finish, start

from adaptkit.recipe import Recipe, dump_recipe

MakeRecipe = Callable[..., Recipe]
KILLS = 2
# name -> what differs from a run of the strategy with its defaults
RUNS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in tiny.STRATEGIES}
RUNS["full, 8-bit AdamW"] = ("full", {"optimizer": "adamw-8bit"})
RUNS["last-layers, early stopping"] = ("last-layers", {"early_stopping": 2, "learning_rate": 1e-9, "epochs": 5})


@pytest.fixture
def recipe_file(recipe: MakeRecipe, tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe that evaluates and saves every two steps of twelve; returns its file."""

    def write(strategy: str, output: str = "run", **training: Any) -> Path:
        every = {"evaluate_every": 1 / 3, "save_every": 1 / 3, "epochs": 2}
        path = tmp_path / f"{output}.yaml"
        path.write_text(dump_recipe(recipe(strategy, output, **{**every, **training})), encoding="utf-8")
        return path

    return write


def outcome(folder: Path) -> dict[str, Any]:
    """Returns what a finished run left behind that must not depend on how often it was stopped."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line.pop("train/seconds", None)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {
        "adapter": hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "metrics": lines,
        "results": {name: results[name] for name in ("metrics", "steps", "kept_step")},
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()),
    }


def run_to_the_end(recipe: Path, folder: Path) -> tuple[dict[str, Any], int]:
    """Returns the outcome of an uninterrupted run, and the lines at which it could have been killed."""
    lines = folder.with_suffix(".lines")
    assert finish(start("run", str(recipe), f"output={folder}", lines=lines)) == 0
    return outcome(folder), int(lines.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_resumes_to_the_same_bits(name: str, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    strategy, training = RUNS[name]
    recipe = recipe_file(strategy, **training)
    expected, lines = run_to_the_end(recipe, tmp_path / "uninterrupted")
    moments = random.Random(name)
    for kill in range(KILLS):
        folder, die_at = tmp_path / f"killed-{kill}", moments.randrange(1, lines)
        assert finish(start("run", str(recipe), f"output={folder}", die_at=die_at)) == -signal.SIGKILL
        assert "eval/loss" in (folder / "metrics.jsonl").read_text(encoding="utf-8"), "killed before any evaluation"
        assert finish(start("run", str(recipe), f"output={folder}", "--resume")) == 0
        assert outcome(folder) == expected, f"killed at line {die_at} of {lines}"
