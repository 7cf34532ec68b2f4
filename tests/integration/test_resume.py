"""A run that was stopped, at whatever moment and however hard, goes on as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from forked_runs import Moment, finish, start

from adaptkit import runner
from adaptkit.errors import CheckpointError, PluginError, RecipeError
from adaptkit.recipe import Recipe, dump_recipe
from adaptkit.registry import Registry
from adaptkit.training.checkpoint import latest_checkpoint, read_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
MakeRecipe = Callable[..., Recipe]
KILLS = 1
# name -> what differs from a run of the strategy with its defaults
RUNS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in tiny.STRATEGIES}
RUNS["full, 8-bit AdamW"] = ("full", {"optimizer": "adamw-8bit"})


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


def killed_and_resumed(recipe: Path, folder: Path, die_at: Moment) -> dict[str, Any]:
    assert finish(start("run", str(recipe), f"output={folder}", die_at=die_at)) == -signal.SIGKILL
    assert "eval/loss" in (folder / "metrics.jsonl").read_text(encoding="utf-8"), "killed before any evaluation"
    assert finish(start("run", str(recipe), f"output={folder}", "--resume")) == 0
    return outcome(folder)


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_resumes_to_the_same_bits(name: str, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    strategy, training = RUNS[name]
    recipe = recipe_file(strategy, **training)
    expected, lines = run_to_the_end(recipe, tmp_path / "uninterrupted")
    moments = random.Random(name)
    for kill in range(KILLS):
        moment = ("line", moments.randrange(1, lines))
        assert killed_and_resumed(recipe, tmp_path / f"killed-{kill}", moment) == expected, f"killed at {moment}"


@pytest.fixture(scope="module")
def early_stopped(
    tiny_bert: Path, tiny_data: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Returns a recipe that evaluates and saves after steps 2, 4 and 6 and then stops early, and its outcome."""
    folder = tmp_path_factory.mktemp("early")
    stops = {"learning_rate": 1e-12, "evaluate_every": 1 / 3, "early_stopping": 2, "epochs": 5}
    recipe = folder / "recipe.yaml"
    made = tiny.make_recipe(tiny_bert, tiny_data, folder / "run", "linear-probe", **stops)
    recipe.write_text(dump_recipe(made), encoding="utf-8")
    return recipe, run_to_the_end(recipe, folder / "uninterrupted")[0]


@pytest.mark.parametrize(
    ("function", "call"),
    [
        pytest.param("_seal", 1, id="while the first checkpoint is written"),
        pytest.param("prune_checkpoints", 2, id="with one checkpoint too many"),
        pytest.param("prune_checkpoints", 3, id="with one too many after the last step"),
        pytest.param("_keep", 1, id="after it has stopped early"),
        pytest.param("_save_tokenizer", 1, id="while the artifact is written"),
        pytest.param("library_versions", 1, id="while its provenance is written"),
    ],
)
def test_wherever_a_run_dies_nothing_is_lost_and_nothing_is_left(
    function: str, call: int, early_stopped: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    recipe, expected = early_stopped
    assert killed_and_resumed(recipe, tmp_path / "killed", (function, call)) == expected


def test_optimizer_states_of_eight_bits_are_part_of_what_resumes(recipe: MakeRecipe) -> None:
    run = runner.run(recipe("full", optimizer="adamw-8bit", max_steps=1))
    optimizer = read_checkpoint(run.directory / "checkpoints" / "step-00000001")["optimizer"]
    assert {tensor.dtype for tensor in tensors(optimizer)} >= {torch.uint8, torch.float32}


def tensors(nest: Any) -> Iterator[torch.Tensor]:
    if isinstance(nest, torch.Tensor):
        yield nest
    for value in nest.values() if isinstance(nest, dict) else nest if isinstance(nest, list | tuple) else ():
        yield from tensors(value)


def test_the_installed_command_can_be_killed_from_outside(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe, folder = recipe_file("lora", save_every=1 / tiny.STEPS_PER_EPOCH), tmp_path / "run"
    expected, _ = run_to_the_end(recipe, tmp_path / "uninterrupted")
    command = [sys.executable, "-m", "adaptkit", "run", str(recipe)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for_step(3, folder)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert finish(start("run", str(recipe), "--resume")) == 0
    assert outcome(folder) == expected


def test_sigterm_ends_with_code_7_between_two_steps_and_resumes_to_the_same_bits(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    recipe, folder = recipe_file("qlora", epochs=4, save_every=4), tmp_path / "stopped"
    expected, _ = run_to_the_end(recipe, tmp_path / "uninterrupted")
    process = start("run", str(recipe), f"output={folder}")
    wait_for_step(3, folder)
    process.terminate()
    assert finish(process) == 7
    assert (folder / "checkpoints" / f"step-{logged_steps(folder):08d}").is_dir()
    assert finish(start("run", str(recipe), f"output={folder}", "--resume")) == 0
    assert outcome(folder) == expected


def wait_for_step(step: int, folder: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while logged_steps(folder) < step:
        assert time.monotonic() < end, f"step {step} does not come"
        time.sleep(0.002)


def logged_steps(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    whole_lines = log.read_text(encoding="utf-8").rpartition("\n")[0].splitlines() if log.exists() else []
    return int(json.loads(whole_lines[-1])["step"]) if whole_lines else 0


def stopped_at(step: int, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, event: str = "adaptkit_step_end") -> None:
    """Runs a recipe until an observer raises, which saves a checkpoint."""
    fire = Registry.fire

    def raises(self: Registry, fired: str, **arguments: Any) -> None:
        fire(self, fired, **arguments)
        record = arguments.get("record")
        seen.append(record.step if record else seen[-1] if seen else 0)
        if fired == event and seen[-1] == step:
            raise PluginError("an observer raised")

    seen: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "fire", raises)
        with pytest.raises(PluginError, match="an observer raised"):
            runner.run(recipe)


@pytest.mark.parametrize("event", ["adaptkit_step_end", "adaptkit_evaluated", "adaptkit_checkpoint_saved"])
def test_a_run_that_an_observer_stopped_resumes_to_the_same_bits(
    event: str, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {"max_steps": 6, "evaluate_every": 1 / 3, "save_every": 1 / 3}
    chosen = recipe("linear-probe", "stopped", **every)
    stopped_at(4, chosen, monkeypatch, event)
    stopped = runner.run(chosen, resume=True)
    assert outcome(stopped.directory) == outcome(runner.run(recipe("linear-probe", "uninterrupted", **every)).directory)


def test_a_changed_recipe_is_refused_with_what_differs(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_at(2, recipe("linear-probe", epochs=1), monkeypatch)
    with pytest.raises(RecipeError, match="not the one that the run began with") as error:
        runner.run(recipe("linear-probe", epochs=1, seed=1), resume=True)
    assert "seed: 0" in str(error.value)


@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_changed_data_is_refused_with_the_name_of_the_file(
    split: str, recipe: MakeRecipe, tiny_data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {name: shutil.copy(source, tmp_path) for name, source in tiny_data.items()}
    chosen = recipe("linear-probe", data=data, epochs=1)
    stopped_at(2, chosen, monkeypatch)
    path = Path(data[split])
    path.write_text(path.read_text(encoding="utf-8").replace("film", "plot"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="has changed since the run began") as error:
        runner.run(chosen, resume=True)
    assert path.name in str(error.value)


def test_a_changed_base_is_refused_with_its_name(
    recipe: MakeRecipe, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = shutil.copytree(tiny_bert, tmp_path / "base")
    chosen = recipe("linear-probe", model=base, epochs=1)
    stopped_at(2, chosen, monkeypatch)
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(bytes(weights))
    with pytest.raises(CheckpointError, match="has changed since the run began") as error:
        runner.run(chosen, resume=True)
    assert str(base) in str(error.value)


def test_a_damaged_checkpoint_is_refused_with_the_file(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe("linear-probe", epochs=1)
    stopped_at(2, chosen, monkeypatch)
    file = tmp_path / "run" / "checkpoints" / "step-00000002" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors"):
        runner.run(chosen, resume=True)


def test_time_and_memory_before_the_stop_count(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = recipe("linear-probe", epochs=1)
    stopped_at(2, chosen, monkeypatch)
    path = latest_checkpoint(Path(chosen.output) / "checkpoints")
    assert path is not None
    session = read_checkpoint(path)["session"]
    assert session["seconds"] > 0
    monkeypatch.setattr("adaptkit.session.peak_memory_bytes", lambda device: 1)
    results = runner.run(chosen, resume=True).results
    assert results["peak_memory_bytes"] == session["peak_memory_bytes"] > 1
    assert results["seconds"] > session["seconds"]


def test_nothing_to_resume_is_an_error(recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="there is no run to resume"):
        runner.run(recipe("linear-probe"), resume=True)
