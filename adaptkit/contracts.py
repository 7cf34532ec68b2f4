"""Checks that a plugin and what it registers keep their contracts, before anybody can choose it by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import pluggy
from pydantic.errors import PydanticUndefinedAnnotation

from adaptkit.errors import did_you_mean
from adaptkit.format import Format
from adaptkit.metric import TextMetric
from adaptkit.recipe import Options, StrategyOptions, TaskOptions
from adaptkit.strategy import Capabilities, LazyOptions, Strategy
from adaptkit.task import Task, TaskCapabilities

__all__ = ["Kind", "contract_faults", "hook_faults"]

Kind: TypeAlias = Literal["strategy", "task", "format", "metric", "optimizer", "tracker"]

# With one prefix at most: peft:ia3.
NAME = re.compile(r"([a-z0-9][a-z0-9-]*:)?[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True)
class _Contract:
    """What a registered class must be: a subclass of `parent` with these class attributes, and perhaps Options."""

    parent: type
    options: type[Options] | None
    attributes: dict[str, type] = field(default_factory=dict)


_CONTRACTS: dict[Kind, _Contract] = {
    "strategy": _Contract(Strategy, StrategyOptions, {"capabilities": Capabilities}),
    "task": _Contract(Task, TaskOptions, {"capabilities": TaskCapabilities, "roles": tuple}),
    "format": _Contract(Format, None, {"gives": tuple, "roles": tuple, "label_roles": tuple, "optional_roles": tuple}),
    "metric": _Contract(TextMetric, None),
}


def contract_faults(kind: Kind, name: Any, value: Any) -> list[str]:
    """Returns every way in which a registered value breaks its contract, one sentence each; empty: none.

    Args:
        kind: What it was registered as.
        name: What a recipe is to call it, whatever type the plugin gave it.
        value: The class of a strategy, task, format or metric, the factory of an optimizer or tracker.
    """
    label = f"{kind} {getattr(value, '__qualname__', value)}"
    contract = _CONTRACTS.get(kind)
    if contract is None:
        return _name_faults(label, name) + ([] if callable(value) else [f"{label} is not callable"])
    if not (isinstance(value, type) and issubclass(value, contract.parent)):
        return [f"{label} is not a subclass of {contract.parent.__module__}.{contract.parent.__name__}"]
    return (
        _name_faults(label, name)
        + _attribute_faults(label, value, contract)
        + _abstract_faults(label, value)
        + (_options_faults(label, value, contract.options) if contract.options else [])
    )


def hook_faults(plugin: object, manager: pluggy.PluginManager) -> Iterable[str]:
    """Yields what is wrong with the hooks of a plugin, what pluggy passes over in silence included.

    Args:
        plugin: The module or object that an entry point names; every ``adaptkit_`` function in it is a hook.
        manager: Knows the hook specifications.
    """
    hooks = vars(manager.hook)
    for name in dir(plugin):
        if not (name.startswith("adaptkit_") and inspect.isroutine(function := getattr(plugin, name))):
            continue
        marker = manager.parse_hookimpl_opts(plugin, name)
        if marker and (marker["optionalhook"] or marker["specname"]):
            continue
        if name not in hooks:
            yield _unknown("hook", name, hooks)
        elif marker is None:
            yield f"{name} is not marked as a hook: write @hookimpl above it"
        else:
            allowed = hooks[name].spec.argnames
            yield from (_unknown(f"argument of {name}", a, allowed) for a in _required(function) if a not in allowed)


def _required(function: Callable[..., object]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _unknown(what: str, name: str, allowed: Iterable[str]) -> str:
    hint = did_you_mean(name, allowed) or f"there are {', '.join(sorted(allowed))}"
    return f"unknown {what}: {name!r} ({hint})"


def _name_faults(label: str, name: Any) -> list[str]:
    if name is None:
        return [f'{label} has no name: write name = "..." into the class']
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return [
            f"{label} has the name {name!r}, but a name is lower-case letters, digits and hyphens, "
            "after one prefix and a colon at most"
        ]
    return []


def _attribute_faults(label: str, cls: type, contract: _Contract) -> list[str]:
    return [
        f"{label} needs a class attribute {attribute} that is a {kind.__name__}"
        for attribute, kind in contract.attributes.items()
        if not isinstance(getattr(cls, attribute, None), kind)
    ]


def _abstract_faults(label: str, cls: type) -> list[str]:
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    return [f"{label} does not define {', '.join(missing)}"] if missing else []


def _options_faults(label: str, cls: type, parent: type[Options]) -> list[str]:
    if isinstance(inspect.getattr_static(cls, "Options", None), LazyOptions):
        return []
    options = getattr(cls, "Options", None)
    if not (isinstance(options, type) and issubclass(options, parent)):
        return [f"{label}: Options is not a subclass of {parent.__module__}.{parent.__name__}"]
    try:
        options.model_rebuild()
    except PydanticUndefinedAnnotation as error:
        return [f"{label}: Options has a type that is not defined when it is imported: {error.message}"]
    faults = []
    if _takes_reserved_key(options, parent):
        faults.append(f"{label}: an Options field is called 'name', which is what chooses the {label.split()[0]}")
    if options.model_config.get("extra") != "forbid":
        faults.append(f"{label}: Options must keep extra='forbid', or a misspelt key of a recipe is lost in silence")
    return faults


def _takes_reserved_key(options: type[Options], parent: type[Options]) -> bool:
    """Whether a field, or the alias of one, takes the key ``name`` away from `parent`."""
    own = [cls for cls in options.__mro__ if issubclass(cls, parent) and cls is not parent]
    aliased = (entry for key, entry in options.model_fields.items() if key != "name")
    return any("name" in inspect.get_annotations(cls) for cls in own) or any(
        "name" in (entry.alias, entry.validation_alias) for entry in aliased
    )
