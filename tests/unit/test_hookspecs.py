"""The hooks are an API: plugins that are installed somewhere were written against these signatures."""

from __future__ import annotations

import inspect
import re

import pytest

from adaptkit.hookspecs import API_VERSION, Events, Registration

# Adding an argument or a hook is compatible. Taking one away breaks plugins: deprecate it first.
FROZEN = {
    "adaptkit_register_strategies": ["register"],
    "adaptkit_register_tasks": ["register"],
    "adaptkit_register_formats": ["register"],
    "adaptkit_register_metrics": ["register"],
    "adaptkit_register_optimizers": ["register"],
    "adaptkit_register_trackers": ["register"],
    "adaptkit_train_begin": ["run"],
    "adaptkit_step_end": ["run", "record"],
    "adaptkit_evaluated": ["run", "metrics"],
    "adaptkit_checkpoint_saved": ["run", "path"],
    "adaptkit_train_end": ["run"],
    "adaptkit_train_error": ["run", "error"],
}
HOOKS = {
    name: function
    for specification in (Registration, Events)
    for name, function in vars(specification).items()
    if inspect.isfunction(function)
}


def test_signatures_are_frozen() -> None:
    found = {name: list(inspect.signature(function).parameters)[1:] for name, function in HOOKS.items()}
    assert found == FROZEN


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_marked_named_and_described(name: str) -> None:
    assert name.startswith("adaptkit_")
    assert hasattr(HOOKS[name], "adaptkit_spec"), "it is not decorated with @hookspec"
    assert inspect.getdoc(HOOKS[name])


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_says_since_which_version_it_is_called(name: str) -> None:
    since = re.findall(r"Since API version (\d+)\.", " ".join((inspect.getdoc(HOOKS[name]) or "").split()))
    assert len(since) == 1
    assert 1 <= int(since[0]) <= API_VERSION


@pytest.mark.parametrize("specification", [Registration, Events])
def test_a_specification_says_when_its_hooks_are_called_and_what_becomes_of_an_error(specification: type) -> None:
    text = inspect.getdoc(specification) or ""
    assert text.startswith("Called ")
    assert "raises" in text
