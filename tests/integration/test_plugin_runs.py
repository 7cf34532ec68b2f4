"""Plugins that pip installed, in real runs: one that adapts, one that breaks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from in_process import CommandLine, pip_install, write_recipe

import adaptkit
from adaptkit.registry import load_registry

SOURCES = Path(__file__).parent.parent / "plugins"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Installs a distribution of ``tests/plugins``, once, into a folder of its own."""
    folders: dict[str, Path] = {}

    def install(name: str) -> Path:
        if name not in folders:
            folders[name] = pip_install(SOURCES / name, tmp_path_factory.mktemp(name))
        return folders[name]

    return install


@pytest.fixture
def visible(installed: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Lets this test see an installed distribution, as if it were in the environment."""
    before = set(sys.modules)
    yield lambda name: monkeypatch.syspath_prepend(str(installed(name)))
    for name in set(sys.modules) - before:
        if name.startswith("adaptkit_"):
            del sys.modules[name]


@pytest.fixture
def recipe(tmp_path: Path, tiny_bert: Path, tiny_data: dict[str, str]) -> Path:
    return write_recipe(tmp_path, tiny_bert, tiny_data)


def test_a_strategy_of_a_plugin_is_listed_trains_is_saved_and_is_loaded_again(
    cli: CommandLine, visible: Callable[[str], None], recipe: Path
) -> None:
    visible("adaptkit-bias")
    folder = recipe.parent / "run"
    (listed,) = (line for line in cli("strategies").stdout.splitlines() if line.startswith("bias "))
    assert "Trains the biases alone" in listed
    assert "adaptkit-bias 1.2" in listed

    trained = cli("run", recipe, "strategy=bias")
    assert (trained.code, trained.stderr) == (0, "")

    from safetensors.torch import load_file

    saved = set(load_file(folder / "adapter" / "adapter_model.safetensors"))
    assert saved
    assert all(name.endswith("bias") or name.startswith("classifier") for name in saved)
    record = json.loads((folder / "adapter" / "adaptkit.json").read_text(encoding="utf-8"))
    assert record["strategy"] == {"name": "bias", "distribution": "adaptkit-bias", "version": "1.2"}

    asked = cli("predict", folder, "--text", "a fine film", "--text", "a dull film")
    assert (asked.code, asked.stderr) == (0, "")
    assert [json.loads(line)["label"] in {"good", "bad"} for line in asked.stdout.splitlines()] == [True, True]


def test_a_reloaded_plugin_strategy_measures_what_it_measured_when_it_was_saved(
    cli: CommandLine, visible: Callable[[str], None], recipe: Path, tiny_data: dict[str, str]
) -> None:
    visible("adaptkit-bias")
    assert cli("run", recipe, "strategy=bias").code == 0
    run = adaptkit.load(recipe.parent / "run")
    again = run.evaluate(tiny_data["evaluation"])
    assert {f"eval/{name}": value for name, value in again.items()} == pytest.approx(run.metrics, abs=1e-6)


def test_without_its_plugin_a_run_says_which_strategy_it_lacks(
    cli: CommandLine, visible: Callable[[str], None], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visible("adaptkit-bias")
    assert cli("run", recipe, "strategy=bias").code == 0
    monkeypatch.setenv("ADAPTKIT_DISABLE_PLUGINS", "adaptkit-bias")
    outcome = cli("predict", recipe.parent / "run", "--text", "fine")
    assert outcome.code == 2
    assert "unknown strategy 'bias'" in outcome.stderr
    assert "left out by ADAPTKIT_DISABLE_PLUGINS: adaptkit-bias" in outcome.stderr


def test_an_observer_that_raises_stops_the_run_with_a_checkpoint_from_which_it_can_go_on(
    cli: CommandLine, visible: Callable[[str], None], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visible("adaptkit-raises-in-event")
    stopped = cli("run", recipe)
    assert stopped.code == 4
    assert "error: adaptkit_step_end of plugin adaptkit-raises-in-event 1.0 raised OSError: disk full at step 1" in (
        stopped.stderr
    )
    assert "ADAPTKIT_DISABLE_PLUGINS=adaptkit-raises-in-event" in stopped.stderr
    assert "warning: adaptkit_train_error of plugin adaptkit-raises-in-event 1.0" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    checkpoints = recipe.parent / "run" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000001"]
    assert not (recipe.parent / "run" / "results.json").exists()

    monkeypatch.setenv("ADAPTKIT_DISABLE_PLUGINS", "adaptkit-raises-in-event")
    resumed = cli("run", recipe, "--resume")
    assert (resumed.code, resumed.stderr) == (0, "")
    assert "resumed from" in resumed.stdout


def test_a_plugin_that_is_broken_does_not_stop_a_run_without_it(
    cli: CommandLine, visible: Callable[[str], None], recipe: Path
) -> None:
    visible("adaptkit-import-error")
    assert cli("run", recipe).code == 0


def test_a_strategy_that_does_not_save_what_it_trains_stops_before_its_first_step(
    cli: CommandLine, visible: Callable[[str], None], recipe: Path
) -> None:
    visible("adaptkit-saves-nothing")
    stopped = cli("run", recipe, "strategy=saves-nothing")
    assert stopped.code == 4
    assert "error: strategy 'saves-nothing' of adaptkit-saves-nothing 1.0 trains" in stopped.stderr
    assert "that it does not save: " in stopped.stderr
    assert "fix:     return all that may ever train from state()" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (recipe.parent / "run" / "checkpoints").exists()
    assert not (recipe.parent / "run" / "metrics.jsonl").exists()


def test_a_strategy_that_writes_into_the_frozen_base_stops_after_its_first_step(
    cli: CommandLine, visible: Callable[[str], None], recipe: Path
) -> None:
    visible("adaptkit-changes-base")
    stopped = cli("run", recipe, "strategy=changes-base")
    assert stopped.code == 4
    assert "error: strategy 'changes-base' of adaptkit-changes-base 1.0 has changed 1 tensor(s)" in stopped.stderr
    assert "declare Capabilities(changes_base=True)" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not list((recipe.parent / "run").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("saves-nothing", "trains 21 tensor(s) that it does not save: bert.embeddings.LayerNorm.bias"),
        ("changes-base", "has changed the base: bert.encoder.layer.1.output.dense.weight"),
    ],
)
def test_the_conformance_kit_finds_what_a_run_would_stop_for(
    name: str, reason: str, visible: Callable[[str], None]
) -> None:
    from adaptkit.testing import run_checks

    visible(f"adaptkit-{name}")
    outcomes = run_checks(load_registry().strategy(name))
    failed = next(outcome for outcome in outcomes if outcome.state == "failed")
    assert reason in failed.reason
