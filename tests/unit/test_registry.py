"""Plugins are loaded each on its own; a name leads to one thing, or to an error that says what to do."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adaptkit.errors import PluginError, RecipeError
from adaptkit.plugins import PluginFailure, PluginInfo
from adaptkit.recipe import load_recipe
from adaptkit.registry import Registry, load_registry

STRATEGY = """
from adaptkit import hookimpl
from adaptkit.strategy import Strategy, StrategyOptions

class Mine(Strategy[StrategyOptions]):
    name = "{name}"
    def adapt(self, model, context):
        return model

@hookimpl
def adaptkit_register_strategies(register):
    register(Mine)
"""
OBSERVER = """
from adaptkit import hookimpl

@hookimpl
def {hook}({arguments}):
    {body}
"""
METRIC = """
from adaptkit import TextMetric, hookimpl

class Length(TextMetric):
    name = "length"
    def update(self, prediction, reference):
        self.letters = len(prediction)
    def compute(self):
        return {"length": self.letters}

@hookimpl
def adaptkit_register_metrics(register):
    register(Length)
"""
TRACKER = "register('paper', lambda run: None)"
UNKNOWN_NAMES = """model: base
task: {name: seq2seq, metrics: [chrf, blue]}
data: {train: train.jsonl}
strategy: full
training: {optimizer: adamv}
trackers: [tensorbord]
output: runs/one
"""
Install = Callable[..., None]
Load = Callable[[], Registry]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on the path, as pip leaves it: a module beside its metadata."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("ADAPTKIT_DISABLE_PLUGINS", raising=False)

    def put(name: str, source: str, version: str = "1.0", points: str | None = None, folder: Path = tmp_path) -> None:
        module = name.replace("-", "_")
        metadata = folder / f"{module}-{version}.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(f"[adaptkit]\n{points or f'{name} = {module}'}\n")
        (folder / f"{module}.py").write_text(source)

    yield put
    for module in set(sys.modules) - before:
        if getattr(sys.modules[module], "__file__", None) and str(tmp_path) in str(sys.modules[module].__file__):
            del sys.modules[module]


@pytest.fixture
def load(tmp_path: Path, install: Install) -> Load:
    """Loads a registry with one built-in plugin, which offers the strategy ``lora``."""
    (tmp_path / "stub_builtin.py").write_text(STRATEGY.format(name="lora"))
    return lambda: load_registry(builtins=["stub_builtin"])


def info(registry: Registry, distribution: str) -> PluginInfo:
    (found,) = [plugin for plugin in registry.plugins if plugin.distribution == distribution]
    return found


def failure(registry: Registry, distribution: str) -> PluginFailure:
    (found,) = [failure for failure in registry.failures if failure.distribution == distribution]
    return found


def test_a_plugin_offers_what_a_built_in_offers(install: Install, load: Load) -> None:
    install("good", STRATEGY.format(name="mine"), version="2.5")
    registry = load()
    entry = registry.strategies["mine"]
    assert (entry.distribution, entry.version, entry.module) == ("good", "2.5", "good")
    assert registry.strategy("mine") is entry.value
    assert registry.strategy_options("mine") is entry.value.Options
    assert registry.strategies["lora"].module == "stub_builtin"


def test_plugin_info_says_what_a_plugin_contributes(install: Install, load: Load) -> None:
    install(
        "good", STRATEGY.format(name="mine") + OBSERVER.format(hook="adaptkit_train_end", arguments="", body="pass")
    )
    found = info(load(), "good")
    assert found.hooks == ("adaptkit_register_strategies", "adaptkit_train_end")
    assert found.names == {"strategy": ("mine",)}
    assert not found.built_in


def test_optimizers_are_registered_by_name(install: Install, load: Load) -> None:
    body = 'register("sgd-plain", lambda groups, settings: groups)'
    install("opt", OBSERVER.format(hook="adaptkit_register_optimizers", arguments="register", body=body))
    assert load().optimizer("sgd-plain")([1], None) == [1]


def test_formats_are_registered_by_their_class(install: Install, load: Load) -> None:
    source = """
from adaptkit import hookimpl
from adaptkit.format import Format

class Mine(Format):
    name, gives, roles = "mine", ("text",), ("body",)
    def convert(self, values):
        return {"text": values["body"]}

@hookimpl
def adaptkit_register_formats(register):
    register(Mine)
"""
    install("good", source)
    registry = load()
    assert registry.formats["mine"].distribution == "good"
    assert registry.format_classes()["mine"]().convert({"body": "a"}) == {"text": "a"}
    assert info(registry, "good").names == {"format": ("mine",)}


def test_the_built_in_formats_are_a_plugin_like_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTKIT_DISABLE_PLUGINS", "all")
    assert set(load_registry().formats) == {"alpaca", "prompt-completion", "sharegpt", "summarization", "words"}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        (OBSERVER.format(hook="adaptkit_step_ends", arguments="run", body="pass"), "did you mean 'adaptkit_step_end'?"),
        (OBSERVER.format(hook="adaptkit_step_end", arguments="recrod", body="pass"), "did you mean 'record'?"),
        ("def adaptkit_step_end(run): pass", "write @hookimpl above it"),
        (OBSERVER.format(hook="adaptkit_register_tasks", arguments="register", body="exit(1)"), "raised SystemExit"),
        (STRATEGY.format(name="mine") + "    register(Mine)", "registers strategy 'mine' more than once"),
        (STRATEGY.format(name="lora"), "strategy 'lora' is already registered by stub_builtin"),
        (STRATEGY.format(name="Mine"), "has the name 'Mine'"),
    ],
)
def test_a_faulty_plugin_is_left_out_whole_and_the_others_load(
    install: Install, load: Load, source: str, reason: str
) -> None:
    install("faulty", source)
    install("good", STRATEGY.format(name="still-here"))
    registry = load()
    assert reason in failure(registry, "faulty").reason
    assert "pip uninstall faulty" in failure(registry, "faulty").fix
    assert "faulty" not in {plugin.distribution for plugin in registry.plugins}
    assert {"lora", "still-here"} <= set(registry.strategies)
    assert "mine" not in registry.strategies
    assert registry.strategies["lora"].module == "stub_builtin"


def test_a_hook_of_a_later_version_may_be_marked_optional(install: Install, load: Load) -> None:
    source = OBSERVER.format(hook="adaptkit_hook_of_tomorrow", arguments="run", body="pass")
    install("early", source.replace("@hookimpl", "@hookimpl(optionalhook=True)"))
    assert info(load(), "early")


def test_a_fault_in_a_built_in_is_raised(tmp_path: Path, load: Load) -> None:
    (tmp_path / "stub_builtin.py").write_text("def adaptkit_train_end(): pass")
    with pytest.raises(PluginError, match="write @hookimpl"):
        load()


def test_an_unknown_name_shows_what_there_is(load: Load) -> None:
    with pytest.raises(RecipeError) as caught:
        load().strategy("lroa")
    (problem,) = caught.value.problems
    assert problem.found == "unknown strategy 'lroa'"
    assert problem.allowed == "lora"
    assert problem.fix == "did you mean 'lora'?"


def test_an_unknown_name_lists_the_plugins_that_failed(install: Install, load: Load) -> None:
    install("unlike-anything", "1 / 0", version="3.1")
    with pytest.raises(RecipeError, match=r"left out: plugin unlike-anything 3\.1: .*ZeroDivisionError"):
        load().strategy("lroa")


def test_a_failed_plugin_that_was_probably_meant_comes_first(install: Install, load: Load) -> None:
    install("adaptkit-galore", "import not_there_at_all")
    with pytest.raises(PluginError) as caught:
        load().strategy("galore")
    first, unknown = caught.value.problems
    assert first.where == "plugin adaptkit-galore 1.0"
    assert "install the missing module not_there_at_all" in (first.fix or "")
    assert unknown.found == "unknown strategy 'galore'"


def test_a_misspelt_built_in_is_not_blamed_on_a_plugin_that_took_its_name(install: Install, load: Load) -> None:
    install("greedy-plugin", STRATEGY.format(name="lora"))
    with pytest.raises(RecipeError, match="did you mean 'lora'"):
        load().strategy("lroa")


def test_a_name_that_a_failed_plugin_offers_is_that_plugins_error(install: Install, load: Load) -> None:
    install("faulty", STRATEGY.format(name="mine") + "    raise OSError('no licence')")
    with pytest.raises(PluginError, match=r"strategy 'mine' cannot be used: .*OSError: no licence"):
        load().strategy("mine")


def test_of_two_distributions_with_one_name_neither_wins(install: Install, load: Load) -> None:
    install("twin-a", STRATEGY.format(name="twin"))
    install("twin-b", STRATEGY.format(name="twin"), version="2.0")
    registry = load()
    assert "twin" not in registry.strategies
    assert {"twin-a", "twin-b"} <= {failure.distribution for failure in registry.failures}
    with pytest.raises(PluginError) as caught:
        registry.strategy("twin")
    (problem,) = caught.value.problems
    assert "twin-a 1.0 and twin-b 2.0" in problem.found
    assert problem.fix == "keep one: `pip uninstall twin-a` or `pip uninstall twin-b`"


def test_metrics_and_trackers_are_registered_by_name(install: Install) -> None:
    install("words", METRIC)
    install("paper", OBSERVER.format(hook="adaptkit_register_trackers", arguments="register", body=TRACKER))
    registry = load_registry()
    metric = registry.make_task(registry.task_options("seq2seq")(name="seq2seq")).text_metric("length")()
    metric.update("four", "ten letters")
    assert metric.compute() == {"length": 4}
    assert callable(registry.tracker("paper"))


def test_every_name_that_there_is_not_is_an_error_at_its_own_place(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(UNKNOWN_NAMES, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, resolver=load_registry())
    assert [(problem.found, str(problem.where).removeprefix(f"{file}:")) for problem in caught.value.problems] == [
        ("unknown metric 'blue'", "2:39"),
        ("unknown optimizer 'adamv'", "5:12"),
        ("unknown tracker 'tensorbord'", "6:12"),
    ]
    assert "did you mean 'bleu'?" in str(caught.value)


def test_one_name_may_stand_for_a_strategy_and_an_optimizer(install: Install, load: Load) -> None:
    body = 'register("mine", lambda groups, settings: groups)'
    install("opt", OBSERVER.format(hook="adaptkit_register_optimizers", arguments="register", body=body))
    install("good", STRATEGY.format(name="mine"))
    registry = load()
    assert set(registry.strategies) & set(registry.optimizers) == {"mine"}


def test_a_distribution_or_entry_point_that_is_listed_twice_loads_once(
    install: Install, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = "one = twice\ntwo = twice"
    install("twice", STRATEGY.format(name="mine"), points=points)
    install("twice", STRATEGY.format(name="mine"), points=points, folder=tmp_path / "second")
    monkeypatch.syspath_prepend(str(tmp_path / "second"))
    registry = load()
    assert info(registry, "twice").entry_point == "one"
    assert registry.strategy("mine")


@pytest.mark.parametrize("value", ["My.Good , other", "all"])
def test_a_plugin_is_left_out_by_the_environment(
    install: Install, load: Load, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    install("my-good", STRATEGY.format(name="mine"))
    monkeypatch.setenv("ADAPTKIT_DISABLE_PLUGINS", value)
    registry = load()
    assert info(registry, "my-good").disabled
    assert "lora" in registry.strategies
    assert "mine" not in registry.strategies
    assert "my_good" not in sys.modules
    with pytest.raises(RecipeError, match=r"left out by ADAPTKIT_DISABLE_PLUGINS: .*my-good"):
        registry.strategy("mine")


def test_an_event_reaches_every_plugin_even_if_one_raises(install: Install, load: Load) -> None:
    for name in ("first", "third"):
        install(name, OBSERVER.format(hook="adaptkit_train_begin", arguments="run", body="run.append(__name__)"))
    install("second", OBSERVER.format(hook="adaptkit_train_begin", arguments="run", body="raise OSError('disk full')"))
    seen: list[str] = []
    with pytest.raises(PluginError, match=r"adaptkit_train_begin of plugin second 1\.0 raised OSError: disk full") as e:
        load().fire("adaptkit_train_begin", run=seen)
    assert seen == ["first", "third"]
    assert isinstance(e.value.__cause__, OSError)


def test_an_error_hook_that_raises_is_only_logged(
    install: Install, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    install("loud", OBSERVER.format(hook="adaptkit_train_error", arguments="error", body="raise OSError('worse')"))
    run: Any = None
    with caplog.at_level(logging.WARNING):
        load().fire_error(run, ValueError("the cause"))
    assert "loud 1.0 raised OSError: worse" in caplog.text


def test_an_event_that_does_not_exist_is_refused(load: Load) -> None:
    with pytest.raises(ValueError, match="adaptkit_step_ends"):
        load().fire("adaptkit_step_ends")


def test_every_load_starts_anew(install: Install, load: Load) -> None:
    assert "mine" not in load().strategies
    install("good", STRATEGY.format(name="mine"))
    assert "mine" in load().strategies
