"""Loads plugins, each on its own: what is wrong with one never keeps another from loading.

Every plugin gets a pluggy manager of its own. It is examined there, its register hooks fill a list of
offers, and only a plugin without any fault is handed on, so that nothing is ever half registered.
Built-in plugins take the same way; a fault in one of them is raised, because it is ours.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import pluggy

from adaptkit.contracts import Kind, contract_faults, hook_faults
from adaptkit.errors import PluginError, Problem
from adaptkit.hookspecs import Events, Registration

GROUP = "adaptkit"
DISTRIBUTION = "adaptkit-train"
BUILTIN_PLUGINS = (
    "adaptkit.strategies",
    "adaptkit.tasks",
    "adaptkit.formats",
    "adaptkit.metrics",
    "adaptkit.training.optim",
    "adaptkit.reporting.tracking",
)
DISABLE_VARIABLE = "ADAPTKIT_DISABLE_PLUGINS"

Names: TypeAlias = Mapping[Kind, tuple[str, ...]]
Load: TypeAlias = Callable[[], object]


@dataclass(frozen=True)
class PluginInfo:
    """A plugin that is installed.

    Attributes:
        distribution: Name of the installed distribution.
        version: Of the distribution.
        entry_point: Name of the entry point; the module of a built-in plugin.
        built_in: Whether it is part of adaptkit itself.
        disabled: Whether ``ADAPTKIT_DISABLE_PLUGINS`` leaves it out; its hooks and names are then not known.
        hooks: Hooks that it implements.
        names: Names that it offers, by kind.
    """

    distribution: str
    version: str
    entry_point: str
    built_in: bool = False
    disabled: bool = False
    hooks: tuple[str, ...] = ()
    names: Names = field(default_factory=dict)


@dataclass(frozen=True)
class PluginFailure:
    """What is wrong with a plugin, and what of it is therefore left out.

    Attributes:
        distribution: Name of the installed distribution.
        version: Of the distribution.
        entry_point: Name of the entry point.
        reason: What is wrong.
        fix: What to do about it.
        names: Names that it would offer, by kind, as far as they are known.
    """

    distribution: str
    version: str
    entry_point: str
    reason: str
    fix: str
    names: Names = field(default_factory=dict)


@dataclass(frozen=True)
class Offer:
    """One thing that a plugin registers; the name is a string once the plugin has been examined."""

    kind: Kind
    name: Any
    value: Any


@dataclass(frozen=True)
class Plugin:
    """A plugin without a fault; its hooks are called through its own ``manager``."""

    info: PluginInfo
    offers: tuple[Offer, ...]
    manager: pluggy.PluginManager


@dataclass(frozen=True)
class LoadedPlugins:
    """What `load_plugins` found; built-in plugins come first."""

    plugins: tuple[Plugin, ...]
    disabled: tuple[PluginInfo, ...] = ()
    failures: tuple[PluginFailure, ...] = ()


def load_plugins(builtins: Sequence[str] = BUILTIN_PLUGINS) -> LoadedPlugins:
    """Loads the built-in plugins, then those of installed distributions.

    Args:
        builtins: Modules of the built-in plugins.

    Raises:
        PluginError: A built-in plugin has a fault.
    """
    loaded = [_load(info, load, []) for info, load in _builtin_plugins(builtins)]
    disabled: list[PluginInfo] = []
    failures: list[PluginFailure] = []
    for info, load in _installed_plugins():
        if _is_disabled(info.distribution):
            disabled.append(replace(info, disabled=True))
            continue
        offers: list[Offer] = []
        try:
            plugin = _load(info, load, offers)
            _refuse_taken_names(plugin, loaded)
        # A plugin may do anything when it is loaded, exit included; none of it stops the others.
        except (Exception, SystemExit) as error:
            failures.append(_failure(info, error, offers))
        else:
            loaded.append(plugin)
    return LoadedPlugins(tuple(loaded), tuple(disabled), tuple(failures))


def removal(distributions: Iterable[str]) -> str:
    """Returns the commands, one of which removes a distribution."""
    return " or ".join(f"`pip uninstall {name}`" for name in dict.fromkeys(distributions))


def describe(error: BaseException) -> str:
    """Returns type and message of an error in one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _builtin_plugins(modules: Sequence[str]) -> Iterable[tuple[PluginInfo, Load]]:
    try:
        version = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    for module in modules:
        yield PluginInfo(DISTRIBUTION, version, module, built_in=True), partial(importlib.import_module, module)


def _installed_plugins() -> Iterable[tuple[PluginInfo, Load]]:
    """Yields every plugin once, however often its distribution or its entry point is listed."""
    found: dict[tuple[str, str], tuple[PluginInfo, Load]] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        distribution = (point.dist and point.dist.name) or point.name
        version = (point.dist and point.dist.version) or "unknown"
        info = PluginInfo(distribution, version, point.name)
        found.setdefault((_normal(distribution), point.value), (info, point.load))
    return [found[key] for key in sorted(found)]


def _is_disabled(distribution: str) -> bool:
    named = {_normal(name) for name in os.environ.get(DISABLE_VARIABLE, "").split(",")}
    return "all" in named or _normal(distribution) in named


def _normal(distribution: str) -> str:
    """Returns the name as PyPA compares names: case and the kind of separator do not matter."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def _load(info: PluginInfo, load: Load, offers: list[Offer]) -> Plugin:
    """Imports and examines one plugin; what it registers goes into ``offers``, also when it then fails."""
    try:
        module = load()
    except (Exception, SystemExit) as error:
        raise PluginError(f"it cannot be imported: {describe(error)}") from error
    manager = _new_manager()
    _raise_faults(hook_faults(module, manager))
    manager.register(module, info.entry_point)
    manager.check_pending()
    _collect(manager, offers)
    _raise_faults(fault for offer in offers for fault in contract_faults(offer.kind, offer.name, offer.value))
    _refuse_repeated_names(offers)
    hooks = tuple(sorted(caller.name for caller in manager.get_hookcallers(module) or ()))
    return Plugin(replace(info, hooks=hooks, names=_names(offers)), tuple(offers), manager)


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager("adaptkit")
    manager.add_hookspecs(Registration)
    manager.add_hookspecs(Events)
    return manager


def _raise_faults(faults: Iterable[str]) -> None:
    if problems := [Problem(fault) for fault in faults]:
        raise PluginError(problems)


def _collect(manager: pluggy.PluginManager, offers: list[Offer]) -> None:
    """Calls the register hooks; whatever they register is only noted down."""

    def register_class(kind: Kind) -> Callable[[type[Any]], None]:
        return lambda cls: offers.append(Offer(kind, getattr(cls, "name", None), cls))

    def register_factory(kind: Kind) -> Callable[[str, Callable[..., Any]], None]:
        return lambda name, factory: offers.append(Offer(kind, name, factory))

    registers: dict[str, Callable[..., None]] = {
        "adaptkit_register_strategies": register_class("strategy"),
        "adaptkit_register_tasks": register_class("task"),
        "adaptkit_register_formats": register_class("format"),
        "adaptkit_register_metrics": register_class("metric"),
        "adaptkit_register_optimizers": register_factory("optimizer"),
        "adaptkit_register_trackers": register_factory("tracker"),
    }
    for hook, register in registers.items():
        try:
            getattr(manager.hook, hook)(register=register)
        except (Exception, SystemExit) as error:
            raise PluginError(f"{hook} raised {describe(error)}") from error


def _refuse_repeated_names(offers: Sequence[Offer]) -> None:
    keys = [(offer.kind, offer.name) for offer in offers]
    repeated = dict.fromkeys(key for key in keys if keys.count(key) > 1)
    _raise_faults(f"it registers {kind} {name!r} more than once" for kind, name in repeated)


def _refuse_taken_names(plugin: Plugin, loaded: Iterable[Plugin]) -> None:
    """Refuses the names of built-ins and of other plugins of the same distribution.

    Names that two distributions share are the registry's matter: there, neither wins.
    """
    taken = {
        (offer.kind, offer.name): other.info
        for other in loaded
        if other.info.built_in or other.info.distribution == plugin.info.distribution
        for offer in other.offers
    }
    _raise_faults(
        f"{offer.kind} {offer.name!r} is already registered by {owner.entry_point} of {owner.distribution}"
        for offer in plugin.offers
        if (owner := taken.get((offer.kind, offer.name)))
    )


def _names(offers: Iterable[Offer]) -> Names:
    names: dict[Kind, tuple[str, ...]] = {}
    for offer in offers:
        if isinstance(offer.name, str):
            names[offer.kind] = (*names.get(offer.kind, ()), offer.name)
    return names


def _failure(info: PluginInfo, error: BaseException, offers: Sequence[Offer]) -> PluginFailure:
    faults = [problem.found for problem in error.problems] if isinstance(error, PluginError) else [describe(error)]
    fix = f"upgrade it (`pip install --upgrade {info.distribution}`) or remove it ({removal([info.distribution])})"
    cause = error.__cause__
    if isinstance(cause, ModuleNotFoundError) and cause.name:
        fix = f"install the missing module {cause.name}, or remove the plugin ({removal([info.distribution])})"
    return PluginFailure(info.distribution, info.version, info.entry_point, "; ".join(faults), fix, _names(offers))
