"""What the README and the pages on plugins show is what happens: installed and run from their own text."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import doc_text
import pytest
import yaml
from doc_text import ROOT
from in_process import CommandLine, pip_install, write_plugin, write_recipe

import adaptkit
from adaptkit.artifact.run import Run
from adaptkit.errors import PluginError
from adaptkit.registry import load_registry
from adaptkit.testing import STRATEGY_CHECKS, NotApplicable, Subject

README = ROOT / "README.md"
PLUGINS_PAGE = ROOT / "docs" / "plugins.md"
SKETCHES_PAGE = ROOT / "docs" / "decisions" / "0001-contracts-tried-on-paper.md"
SKETCHES = ("adalora", "lisa", "galore", "prompt-tuning", "side-network", "vera", "probe-then-tune")
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
T5 = {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_kv": 16, "d_ff": 32}
STOPPED_AT = 7  # of 12 steps, in the middle of an epoch and between two draws of LISA
STOPS = f"""

@hookimpl
def adaptkit_step_end(run, record):
    if record.step == {STOPPED_AT} and run.directory.name == "stopped":
        raise RuntimeError("stopped by the test")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the packages that the two pages show; what is no package was copied."""
    root = tmp_path_factory.mktemp("shown")
    for page in (README, PLUGINS_PAGE):
        site = pip_install(doc_text.write_files(page, root / page.stem), root)
    write_plugin(site, "adaptkit-sketches", "\n\n".join(doc_text.blocks(SKETCHES_PAGE, "python")) + STOPS)
    alone = [block for block in doc_text.blocks(PLUGINS_PAGE, "python") if block.startswith("from adaptkit import")]
    write_plugin(site, "adaptkit-shown", "\n\n".join(alone))
    return site


@pytest.fixture
def _visible(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets a test see what is installed in `site`, as if it were in the environment."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(site))
    yield
    for name in set(sys.modules) - before:
        if name.startswith("adaptkit_"):
            del sys.modules[name]


@pytest.fixture
def recipe(tmp_path: Path, tiny_bert: Path, tiny_data: dict[str, str]) -> Path:
    return write_recipe(tmp_path, tiny_bert, tiny_data)


def saved_tensors(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(run / "adapter" / "adapter_model.safetensors"))


@pytest.mark.parametrize("page", [README, PLUGINS_PAGE], ids=doc_text.title)
def test_a_plugin_that_is_shown_needs_public_names_only(page: Path, tmp_path: Path) -> None:
    for path in doc_text.write_files(page, tmp_path).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("adaptkit"):
                assert node.module == "adaptkit"
                assert {alias.name for alias in node.names} <= set(adaptkit.__all__)


def test_the_readmes_plugin_takes_15_lines(tmp_path: Path) -> None:
    code = (doc_text.write_files(README, tmp_path) / "adaptkit_bitfit.py").read_text(encoding="utf-8")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_plugins_are_listed_by_the_installed_command_without_torch(site: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from adaptkit.__main__ import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(site), "ADAPTKIT_DISABLE_PLUGINS": "adaptkit-sketches"}
    command = [sys.executable, "-c", code, "strategies"]
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert {"bitfit", "pca-lora", "lora"} <= {line.split(" ")[0] for line in listed.splitlines()}
    assert "adaptkit-bitfit 0.1" in listed


@pytest.mark.usefixtures("_visible")
def test_the_readmes_plugin_trains_biases_and_head_by_name_and_answers(cli: CommandLine, recipe: Path) -> None:
    trained = cli("run", recipe, "strategy=bitfit")
    assert (trained.code, trained.stderr) == (0, "")
    tensors = saved_tensors(recipe.parent / "run")
    assert all(name.endswith("bias") or name.startswith("classifier") for name in tensors)
    asked = cli("predict", recipe.parent / "run", "--text", "a fine film")
    assert json.loads(asked.stdout)["label"] in {"good", "bad"}


@pytest.mark.usefixtures("_visible")
def test_the_longer_plugin_starts_from_the_data_and_saves_what_never_trains(cli: CommandLine, recipe: Path) -> None:
    import torch

    assert cli("run", recipe, "strategy=pca-lora", "strategy.r=3").code == 0
    bases = [tensor for name, tensor in saved_tensors(recipe.parent / "run").items() if name.endswith(".basis")]
    assert len(bases) == 4
    for basis in bases:
        torch.testing.assert_close(basis @ basis.T, torch.eye(3))
    unknown = cli("validate", recipe, "strategy=pca-lora", "strategy.rank=3")
    assert unknown.code == 2
    assert "unknown key 'rank'" in unknown.stderr


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.usefixtures("_visible")
def test_the_format_that_is_shown_is_told_from_its_columns(cli: CommandLine, recipe: Path, tmp_path: Path) -> None:
    rows = [{"headline": "a film", "article": f"was {word}", "topic": word} for word in ("good", "bad")]
    shown = cli("preview", recipe, f"data={{train: {write_rows(tmp_path / 'news.jsonl', rows)}}}")
    assert (shown.code, shown.stderr) == (0, "")
    assert "format headlined" in shown.stdout


@pytest.mark.usefixtures("_visible")
def test_the_task_the_optimizer_and_the_observer_that_are_shown_work(cli: CommandLine, tmp_path: Path) -> None:
    one, two, other = {"text": "a film was good", "weight": 1}, {"text": "a film was good", "weight": 2}, "so dull"
    rows = [two, {"text": other, "weight": 0.5}]
    values = {
        "model": {"name": "gpt2", "init": "random", "config": GPT, "tokenizer": {"vocab_size": 300}},
        "task": "weighted-lm",
        "data": {"train": write_rows(tmp_path / "train.jsonl", rows), "evaluation": str(tmp_path / "train.jsonl")},
        "strategy": "full",
        "training": {"epochs": 1, "compute": "fp32", "optimizer": "adagrad"},
        "output": str(tmp_path / "run"),
    }
    path = tmp_path / "weighted.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    trained = cli("run", path)
    assert (trained.code, trained.stderr) == (0, "")
    assert "Adagrad at learning rate" in trained.stdout
    assert "run: loss " in trained.stdout
    run = adaptkit.load(tmp_path / "run")
    repeated = write_rows(tmp_path / "repeated.jsonl", [one, one, {"text": other, "weight": 0.5}])
    assert run.evaluate(repeated)["loss"] == pytest.approx(run.metrics["eval/loss"])
    assert run.predict([other])[0]["nats"] > 0


@pytest.mark.usefixtures("_visible")
def test_the_metric_and_the_tracker_that_are_shown_work(cli: CommandLine, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"source": "a film", "target": "was good"}] * 4)
    values = {
        "model": {"name": "t5", "init": "random", "config": T5, "tokenizer": {"vocab_size": 600}},
        "task": {"name": "seq2seq", "metrics": ["length-ratio"], "max_new_tokens": 3},
        "data": {"train": rows, "evaluation": rows},
        "strategy": "full",
        "training": {"epochs": 1, "compute": "fp32"},
        "trackers": ["board"],
        "output": str(tmp_path / "run"),
    }
    path = tmp_path / "lengths.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    trained = cli("run", path)
    assert (trained.code, trained.stderr) == (0, "")
    assert "eval/length_ratio" in trained.stdout
    assert "run, step 1: train/loss" in trained.stdout
    assert "run: closed" in trained.stdout


@pytest.mark.usefixtures("_visible")
@pytest.mark.parametrize("name", SKETCHES)
def test_a_sketched_method_trains_and_resumes_to_the_same_bits(name: str, cli: CommandLine, recipe: Path) -> None:
    import torch

    folder = recipe.parent
    # Without evaluation rows the last step is kept, not one from before the stop.
    options = (f"strategy={name}", "training.epochs=2", "data.evaluation=null")
    whole = cli("run", recipe, *options, f"output={folder / 'whole'}")
    assert (whole.code, whole.stderr) == (0, "")

    stopped = (recipe, *options, f"output={folder / 'stopped'}")
    assert cli("run", *stopped).code == PluginError.exit_code
    assert cli("run", *stopped, "--resume").code == 0

    expected, found = saved_tensors(folder / "whole"), saved_tensors(folder / "stopped")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    texts = ["a fine film", "a dull plot"]
    assert adaptkit.load(folder / "whole").predict(texts) == adaptkit.load(folder / "stopped").predict(texts)


def test_the_readmes_python_runs(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipes").mkdir()
    recipe.rename(tmp_path / "recipes" / "quickstart.yaml")
    monkeypatch.chdir(tmp_path)
    (shown,) = [block for block in doc_text.blocks(README, "python") if block.startswith("import adaptkit\n")]
    Path("shown.py").write_text(shown, encoding="utf-8")
    runpy.run_path("shown.py")
    printed = capsys.readouterr().out
    assert "'label'" in printed
    assert "'accuracy'" in printed


@pytest.mark.parametrize("name", ["metrics", "predict", "evaluate", "model", "tokenizer"])
def test_every_attribute_of_a_run_that_the_readme_shows_is_documented(name: str) -> None:
    assert f"run.{name}" in README.read_text(encoding="utf-8")
    assert getattr(Run, name).__doc__


@pytest.mark.usefixtures("_visible")
@pytest.mark.parametrize("name", ["bitfit", "pca-lora"])
def test_the_strategies_that_are_shown_keep_the_contract(name: str) -> None:
    strategy = load_registry().strategy(name)
    for check in STRATEGY_CHECKS:
        with contextlib.suppress(NotApplicable):
            check(Subject(strategy))
