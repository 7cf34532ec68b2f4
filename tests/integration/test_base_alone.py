"""What a run has learned is seen beside its base alone: as it was, whatever the strategy changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from in_process import CommandLine

import adaptkit
from adaptkit.artifact.run import Run
from adaptkit.errors import CheckpointError, ModelError
from adaptkit.recipe import Recipe, parse_recipe
from adaptkit.registry import load_registry
from benchmarks.cells import rows_by_task

pytestmark = pytest.mark.usefixtures("one_thread")
STRATEGIES = ["lora", "full", "prefix-tuning"]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps(row) + "\n" for row in rows_by_task()["causal-lm"]]
    file.write_text("".join(lines), encoding="utf-8")
    return str(file)


def train(output: Path, model: object, strategy: str, rows: str) -> Run:
    values = {
        "model": model,
        "task": "causal-lm",
        "data": {"train": rows, "evaluation": rows, "max_length": 24},
        "strategy": strategy,
        "training": {"max_steps": 3, "effective_batch": 4, "learning_rate": 1e-2, "compute": "fp32"},
        "output": str(output),
    }
    return adaptkit.run(parse_recipe(values, resolver=load_registry()))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, rows: str) -> dict[str, Run]:
    """The runs of three strategies on one small decoder, which a run before them made."""
    folder = tmp_path_factory.mktemp("runs")
    new = {"name": "llama", "init": "random", "config": SHAPE, "tokenizer": {"vocab_size": 300}}
    base = str(train(folder / "base", new, "full", rows).directory)
    return {name: train(folder / name, base, name, rows) for name in STRATEGIES}


def test_the_base_is_measured_as_it_was_before_the_training(runs: dict[str, Run]) -> None:
    before = [run.unadapted().evaluate() for run in runs.values()]
    assert before == before[:1] * len(STRATEGIES), "whatever the strategy, the base is the same"
    with runs["lora"].strategy.disabled(runs["lora"].model):
        assert runs["lora"].evaluate() == before[0]
    assert not runs["lora"].unadapted().metrics
    assert all(run.evaluate()["loss"] < before[0]["loss"] for run in runs.values())


def test_commands_ask_the_base(runs: dict[str, Run], cli: CommandLine) -> None:
    run = runs["full"]
    figures = run.unadapted().evaluate()
    measured = cli("evaluate", run.directory, "--base")
    assert measured.stdout.endswith("  ".join(f"{name} {value:.4f}" for name, value in figures.items()) + "\n")
    asked = cli("predict", run.directory, "--base", "--text", "the film")
    assert [json.loads(asked.stdout)] == run.unadapted().predict(["the film"])


def test_a_base_that_is_no_longer_what_was_adapted_is_refused(runs: dict[str, Run], tmp_path: Path) -> None:
    copied = Path(shutil.copytree(runs["lora"].directory, tmp_path / "run"))
    record = json.loads((copied / "adapter" / "adaptkit.json").read_text(encoding="utf-8"))
    record["base"]["fingerprint"] = "another"
    (copied / "adapter" / "adaptkit.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(CheckpointError, match="not the one that was adapted"):
        adaptkit.load(copied).unadapted()


def test_a_base_whose_head_is_new_is_not_asked(recipe: Callable[..., Recipe], cli: CommandLine) -> None:
    run = adaptkit.run(recipe("lora", max_steps=1))
    with pytest.raises(ModelError, match="alone cannot do text-classification"):
        run.unadapted()
    refused = cli("evaluate", run.directory, "--base")
    assert refused.code != 0
    assert "classifier" in refused.stderr
    assert "Traceback" not in refused.stderr
