"""Plugins that were written against version 1 of the hooks go on working when a hook gains an argument."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from in_process import CommandLine, pip_install, write_recipe

from adaptkit.hookspecs import API_VERSION, Events, Registration, hookspec
from adaptkit.registry import load_registry

SOURCE = Path(__file__).parent.parent / "plugins" / "adaptkit-all-hooks"


class LaterRegistration(Registration):
    """As a later version may have it: every hook has one more argument."""

    @hookspec
    def adaptkit_register_strategies(self, register, later): ...

    @hookspec
    def adaptkit_register_tasks(self, register, later): ...

    @hookspec
    def adaptkit_register_formats(self, register, later): ...

    @hookspec
    def adaptkit_register_metrics(self, register, later): ...

    @hookspec
    def adaptkit_register_optimizers(self, register, later): ...

    @hookspec
    def adaptkit_register_trackers(self, register, later): ...


class LaterEvents(Events):
    """As a later version may have it: every hook has one more argument."""

    @hookspec
    def adaptkit_train_begin(self, run, later): ...

    @hookspec
    def adaptkit_step_end(self, run, later, record): ...

    @hookspec
    def adaptkit_evaluated(self, later, run, metrics): ...

    @hookspec
    def adaptkit_checkpoint_saved(self, run, path, later): ...

    @hookspec
    def adaptkit_train_end(self, run, later): ...

    @hookspec
    def adaptkit_train_error(self, run, error, later): ...


LATER: dict[type, type] = {Registration: LaterRegistration, Events: LaterEvents}
HOOKS = {name: spec for spec in LATER for name in vars(spec) if name.startswith("adaptkit_")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed a plugin that implements every hook."""
    return pip_install(SOURCE, tmp_path_factory.mktemp("all-hooks"))


@pytest.fixture
def plugin(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the plugin, seen as if it were in the environment."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv("ADAPTKIT_DISABLE_PLUGINS", raising=False)
    import adaptkit_all_hooks

    adaptkit_all_hooks.calls.clear()
    yield adaptkit_all_hooks
    del sys.modules["adaptkit_all_hooks"]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets plugins be loaded as a later version of adaptkit would load them."""
    for spec, grown in LATER.items():
        monkeypatch.setattr(f"adaptkit.plugins.{spec.__name__}", grown)


def arguments(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_plugin_of_version_1_implements_every_hook_of_it_with_every_argument(plugin: ModuleType) -> None:
    assert API_VERSION == 1, "keep this plugin, and add one that implements what the new version has"
    for name, spec in HOOKS.items():
        assert arguments(getattr(plugin, name)) == arguments(getattr(spec, name))
        assert set(arguments(getattr(LATER[spec], name))) == {*arguments(getattr(spec, name)), "later"}


@pytest.mark.usefixtures("later")
@pytest.mark.filterwarnings("ignore:Argument:Warning:adaptkit")  # this version does not call with `later`
def test_a_plugin_of_version_1_loads_and_is_called_when_every_hook_has_gained_an_argument(plugin: ModuleType) -> None:
    registry = load_registry(builtins=["adaptkit.strategies"])
    assert not registry.failures
    assert registry.strategies["of-version-1"].distribution == "adaptkit-all-hooks"
    assert all(working for _, working in plugin.calls)
    assert len(plugin.calls) == 5

    given: dict[str, Any] = {name: object() for name in ("run", "record", "metrics", "path", "error", "later")}
    for event in (name for name, spec in HOOKS.items() if spec is Events):
        registry.fire(event, **{name: given[name] for name in arguments(getattr(LaterEvents, event))})
        expected = [given[name] for name in arguments(getattr(Events, event))]
        assert plugin.calls[-1] == (event.removeprefix("adaptkit_"), *expected)


@pytest.mark.usefixtures("plugin")
def test_a_deprecated_argument_still_arrives_and_names_the_plugin_that_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Deprecating(Events):
        @hookspec(warn_on_impl_args={"metrics": DeprecationWarning("metrics of adaptkit_evaluated: use figures")})
        def adaptkit_evaluated(self, run, metrics, figures): ...

    monkeypatch.setattr("adaptkit.plugins.Events", Deprecating)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        registry = load_registry(builtins=["adaptkit.strategies"])
    (warning,) = [each for each in caught if issubclass(each.category, DeprecationWarning)]
    assert "use figures" in str(warning.message)
    assert Path(warning.filename).name == "adaptkit_all_hooks.py"
    run: Any = None
    registry.fire("adaptkit_evaluated", run=run, metrics={"eval/loss": 1.0}, figures={"loss": 1.0})
    assert sys.modules["adaptkit_all_hooks"].calls[-1] == ("evaluated", None, {"eval/loss": 1.0})


def test_in_a_run_every_event_comes_in_its_order(
    cli: CommandLine, plugin: ModuleType, tmp_path: Path, tiny_bert: Path, tiny_data: dict[str, str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert, tiny_data, max_steps=2)
    done = cli("run", recipe, "strategy=of-version-1")
    assert (done.code, done.stderr) == (0, "")
    events = [call[0] for call in plugin.calls if not call[0].startswith("register")]
    assert events == ["train_begin", "step_end", "step_end", "evaluated", "checkpoint_saved", "train_end"]
    failed = cli("run", recipe, "strategy=of-version-1", "training.learning_rate=1e30", f"output={tmp_path / 'broken'}")
    assert failed.code == 1
    assert plugin.calls[-1][0] == "train_error"
