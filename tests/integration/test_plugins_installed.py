"""Plugins that pip installed, most of them broken on purpose, all side by side (``tests/plugins``)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adaptkit.errors import PluginError
from adaptkit.hookspecs import StepRecord
from adaptkit.plugins import PluginFailure
from adaptkit.registry import Registry, load_registry

SOURCES = Path(__file__).parent.parent / "plugins"
FAULTY = {
    "adaptkit-import-error": "ModuleNotFoundError: No module named 'a_module_that_nobody_has'",
    "adaptkit-syntax-error": "SyntaxError",
    "adaptkit-misspelt-hook": "did you mean 'adaptkit_register_strategies'?",
    "adaptkit-wrong-argument": "unknown argument of adaptkit_step_end: 'recrod' (did you mean 'record'?)",
    "adaptkit-builtin-clash": "strategy 'lora' is already registered by adaptkit.strategies",
    "adaptkit-options-clash": "an Options field is called 'name'",
    "adaptkit-raises-in-register": "adaptkit_register_strategies raised RuntimeError: no licence found",
}
# What loads without a fault, and shows its own when it is used: tests/integration/test_plugin_runs.py.
FAULTY_IN_USE = {"adaptkit-raises-in-event", "adaptkit-changes-base", "adaptkit-saves-nothing"}
GOOD = {"adaptkit-bias", "adaptkit-all-hooks"}
CLASHING = {"adaptkit-name-clash-a", "adaptkit-name-clash-b"}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed every distribution of ``tests/plugins``."""
    root = tmp_path_factory.mktemp("plugins")
    # setuptools leaves build folders beside the sources.
    folders = [shutil.copytree(source, root / source.name) for source in SOURCES.iterdir() if source.is_dir()]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(root / "site"), *map(str, folders)]
    subprocess.run(command, check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    return root / "site"


@pytest.fixture(scope="module")
def registry(site: Path) -> Iterator[Registry]:
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.delenv("ADAPTKIT_DISABLE_PLUGINS", raising=False)
        yield load_registry()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(site)):
            del sys.modules[name]


def run_python(site: Path, code: str, **environment: str) -> Any:
    """Runs a program that prints JSON in a fresh interpreter that sees the installed plugins."""
    env = {**os.environ, "PYTHONPATH": str(site), "ADAPTKIT_DISABLE_PLUGINS": "", **environment}
    done = subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True, text=True)
    return json.loads(done.stdout)


def failures(registry: Registry, distribution: str) -> list[PluginFailure]:
    return [failure for failure in registry.failures if failure.distribution == distribution]


def test_a_good_plugin_loads_among_broken_ones(registry: Registry) -> None:
    entry = registry.strategies["bias"]
    assert (entry.distribution, entry.version, entry.module) == ("adaptkit-bias", "1.2", "adaptkit_bias")


def test_every_plugin_is_good_or_its_fault_is_expected() -> None:
    sources = {source.name for source in SOURCES.iterdir() if source.is_dir()}
    assert sources == FAULTY.keys() | FAULTY_IN_USE | GOOD | CLASHING


def test_a_whole_strategy_takes_at_most_20_lines() -> None:
    assert len((SOURCES / "adaptkit-bias" / "adaptkit_bias.py").read_text().splitlines()) <= 20


@pytest.mark.parametrize(("distribution", "reason"), FAULTY.items(), ids=FAULTY)
def test_a_broken_plugin_is_left_out_with_reason_and_fix(registry: Registry, distribution: str, reason: str) -> None:
    (failure,) = failures(registry, distribution)
    assert reason in failure.reason
    assert f"pip uninstall {distribution}" in failure.fix
    assert distribution not in {plugin.distribution for plugin in registry.plugins}
    assert distribution not in {entry.distribution for entry in registry.strategies.values()}


def test_the_list_of_plugins_names_each_broken_one_without_a_traceback(site: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site), "ADAPTKIT_DISABLE_PLUGINS": "", "COLUMNS": "100"}
    command = [sys.executable, "-m", "adaptkit", "plugins"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    _, left_out = done.stdout.split("left out:")
    problems = left_out.strip().split("\n\n")
    assert {problem.split(" ")[0] for problem in problems} == FAULTY.keys() | CLASHING
    assert all("fix:" in problem and "entry point" in problem for problem in problems)
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(("option", "shown"), [([], False), (["--debug"], True)], ids=["plain", "debug"])
def test_naming_a_broken_plugins_strategy_shows_a_traceback_only_to_who_asks(
    site: Path, option: list[str], shown: bool
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site), "ADAPTKIT_DISABLE_PLUGINS": ""}
    command = [sys.executable, "-m", "adaptkit", *option, "strategies", "half"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == PluginError.exit_code
    assert "error: strategy 'half' cannot be used" in done.stderr
    assert "plugin adaptkit-raises-in-register 1.0" in done.stderr
    assert ("Traceback" in done.stderr) is shown


def test_what_a_plugin_registered_before_it_raised_is_its_error(registry: Registry) -> None:
    with pytest.raises(PluginError, match=r"strategy 'half' cannot be used: .*no licence found"):
        registry.strategy("half")


def test_a_name_of_two_distributions_is_refused_and_their_other_names_stay(registry: Registry) -> None:
    with pytest.raises(PluginError) as caught:
        registry.strategy("twin")
    text = str(caught.value)
    assert "adaptkit-name-clash-a 1.0 and adaptkit-name-clash-b 2.0" in text
    assert "`pip uninstall adaptkit-name-clash-a` or `pip uninstall adaptkit-name-clash-b`" in text
    assert failures(registry, "adaptkit-name-clash-a")
    assert failures(registry, "adaptkit-name-clash-b")
    assert registry.strategy("only-a")


def test_a_built_in_keeps_its_name(registry: Registry) -> None:
    assert registry.strategies["lora"].distribution == "adaptkit-train"


def test_a_raising_observer_names_itself_and_never_hides_an_error(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    run: Any = None
    record = StepRecord(7, epoch=0.1, loss=1.0, count=1, tokens=1, learning_rate=1e-3, grad_norm=1.0, seconds=0.1)
    with pytest.raises(PluginError, match=r"step_end of plugin adaptkit-raises-in-event 1\.0 .*disk full at step 7"):
        registry.fire("adaptkit_step_end", run=run, record=record)
    registry.fire_error(run, ValueError("the cause"))
    assert "disk still full" in caplog.text


def test_the_environment_leaves_plugins_out(site: Path) -> None:
    code = """
import json
from adaptkit.registry import load_registry
registry = load_registry()
print(json.dumps([[p.distribution for p in registry.plugins if p.disabled], sorted(registry.strategies)]))
"""
    disabled, strategies = run_python(site, code, ADAPTKIT_DISABLE_PLUGINS="adaptkit-name-clash-a,Adaptkit.Bias")
    assert disabled == ["adaptkit-bias", "adaptkit-name-clash-a"]
    assert "twin" in strategies
    assert "bias" not in strategies


def test_loading_imports_nothing_heavy(site: Path) -> None:
    code = """
import json, sys
from adaptkit.registry import load_registry
load_registry()
print(json.dumps(sorted({"torch", "transformers", "peft", "bitsandbytes", "datasets"} & set(sys.modules))))
"""
    assert run_python(site, code) == []
