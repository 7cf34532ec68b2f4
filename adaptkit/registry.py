"""From a name in a recipe to what it stands for, and to the distribution that it came from."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_args

from pydantic import Field

from adaptkit.contracts import Kind
from adaptkit.errors import AdaptkitError, PluginError, Problem, RecipeError, did_you_mean
from adaptkit.format import Format
from adaptkit.hookspecs import Events, RunInfo, Tracker
from adaptkit.metric import TextMetric
from adaptkit.plugins import (
    BUILTIN_PLUGINS,
    DISABLE_VARIABLE,
    LoadedPlugins,
    PluginFailure,
    PluginInfo,
    describe,
    load_plugins,
    removal,
)
from adaptkit.recipe import Recipe, StrategyOptions, TaskOptions
from adaptkit.strategy import Strategy
from adaptkit.task import Task

__all__ = ["Entry", "Registry", "load_registry"]

logger = logging.getLogger(__name__)

# What tasks are called elsewhere; proposed in messages, never taken for the name.
OTHER_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("classification", "sequence-classification", "sentiment-analysis"), "text-classification"),
    **dict.fromkeys(("ner", "pos", "pos-tagging", "tagging"), "token-classification"),
    **dict.fromkeys(("clm", "language-modeling", "text-generation"), "causal-lm"),
    **dict.fromkeys(("chat", "instruct", "instruction-tuning"), "sft"),
    **dict.fromkeys(("summarization", "summarisation", "translation", "text2text-generation"), "seq2seq"),
    **dict.fromkeys(("mlm", "fill-mask"), "masked-lm"),
}

# In the place of a strategy's name: the first of several that fits.
AUTO = "auto"

EVENTS = frozenset(name for name in vars(Events) if name.startswith("adaptkit_"))
T = TypeVar("T")


class AutoOptions(StrategyOptions):
    """The keys of ``strategy:`` where the memory decides.

    The order: what changes most learns most where there are rows enough, so all weights first; low-rank updates come
    close to it (Schulman et al. 2025, "LoRA Without Regret"); the same on a base of 4 bits costs time, and quality only
    where the base has none to lose (Dettmers et al. 2023, arXiv:2305.14314).
    """

    among: list[str] = Field(
        ["full", "lora", "qlora"],
        min_length=1,
        description="Names of strategies in order of preference; the first whose run fits the memory is taken, with "
        "its default options.",
    )


@dataclass(frozen=True)
class Entry(Generic[T]):
    """What a name stands for.

    Attributes:
        value: The class of a strategy, task, format or metric, the factory of an optimizer or tracker.
        distribution: Where it came from.
        version: Of the distribution.
        module: In which it is defined.
    """

    value: T
    distribution: str
    version: str
    module: str


class Registry:
    """Everything that a recipe can choose by name, and the plugins that watch a run.

    Attributes:
        strategies: Name to the class of a strategy.
        unavailable: Names of strategies that are known and cannot be chosen, with the reason.
        tasks: Name to the class of a task.
        formats: Name to the class of a dataset format.
        metrics: Name to the class of a text metric.
        optimizers: Name to the factory of an optimizer, called with parameter groups and settings.
        trackers: Name to the factory of a tracker, called with the run.
        plugins: Every plugin that is installed and has no fault, disabled ones included.
        failures: What is wrong with the others; two plugins that share a name have one each.
    """

    def __init__(self, loaded: LoadedPlugins) -> None:
        entries, clashes = _merge(loaded)
        known: Mapping[str, Entry[type[Strategy[Any]]]] = entries["strategy"]
        self.strategies = {name: entry for name, entry in known.items() if entry.value.unavailable is None}
        self.unavailable = {name: reason for name, entry in known.items() if (reason := entry.value.unavailable)}
        self.tasks: Mapping[str, Entry[type[Task[Any]]]] = entries["task"]
        self.formats: Mapping[str, Entry[type[Format]]] = entries["format"]
        self.metrics: Mapping[str, Entry[type[TextMetric]]] = entries["metric"]
        self.optimizers: Mapping[str, Entry[Callable[..., Any]]] = entries["optimizer"]
        self.trackers: Mapping[str, Entry[Callable[[RunInfo], Tracker]]] = entries["tracker"]
        self.plugins: tuple[PluginInfo, ...] = (*(plugin.info for plugin in loaded.plugins), *loaded.disabled)
        self.failures: tuple[PluginFailure, ...] = (*loaded.failures, *clashes)
        self._loaded = loaded.plugins

    def strategy(self, name: str) -> type[Strategy[Any]]:
        """Returns the class of a strategy.

        Raises:
            RecipeError: Nothing has this name.
            PluginError: Nothing has it, and a plugin with a fault seems to be what was meant.
        """
        if name in self.unavailable:
            raise RecipeError(f"the strategy {name!r} cannot be used: {self.unavailable[name]}")
        return self._find("strategy", self.strategies, name)

    def task(self, name: str) -> type[Task[Any]]:
        """Returns the class of a task; raises as `strategy` does."""
        return self._find("task", self.tasks, name)

    def make_task(self, options: TaskOptions) -> Task[Any]:
        """Returns a new task that can find text metrics by name; raises as `strategy` does."""
        task = self.task(options.name)(options)
        task.text_metric = self.metric
        return task

    def format_classes(self) -> dict[str, type[Format]]:
        """Returns every dataset format, by name."""
        return {name: entry.value for name, entry in self.formats.items()}

    def optimizer(self, name: str) -> Callable[..., Any]:
        """Returns the factory of an optimizer; raises as `strategy` does."""
        return self._find("optimizer", self.optimizers, name)

    def metric(self, name: str) -> type[TextMetric]:
        """Returns the class of a text metric; raises as `strategy` does."""
        return self._find("metric", self.metrics, name)

    def tracker(self, name: str) -> Callable[[RunInfo], Tracker]:
        """Returns the factory of a tracker; raises as `strategy` does."""
        return self._find("tracker", self.trackers, name)

    def strategy_options(self, name: str) -> type[StrategyOptions]:
        """Returns the options of a strategy, or those of ``auto``; raises as `strategy` does."""
        return AutoOptions if name == AUTO else self.strategy(name).Options

    def task_options(self, name: str) -> type[TaskOptions]:
        """Returns the options of a task; raises as `strategy` does."""
        return self.task(name).Options

    def unknown_names(self, recipe: Recipe) -> Iterator[tuple[tuple[str | int, ...], AdaptkitError]]:
        """Yields where a recipe names an optimizer, a text metric or a tracker that there is not, and the error."""
        looked_up: list[tuple[tuple[str | int, ...], Callable[[str], Any], str]] = [
            (("training", "optimizer"), self.optimizer, recipe.training.optimizer),
            *((("task", "metrics", i), self.metric, name) for i, name in enumerate(recipe.task.text_metrics())),
            *((("trackers", i), self.tracker, name) for i, name in enumerate(recipe.trackers)),
        ]
        for path, look_up, name in looked_up:
            try:
                look_up(name)
            except AdaptkitError as error:
                yield path, error

    def fire(self, event: str, **arguments: Any) -> None:
        """Calls an event hook of every plugin, of all of them even if some raise.

        Args:
            event: Full name of the hook, ``adaptkit_step_end`` for one.
            **arguments: The arguments of the hook.

        Raises:
            PluginError: One problem for each plugin that raised; its cause is what the first of them raised.
        """
        if event not in EVENTS:
            raise ValueError(f"{event!r} is not an event of adaptkit.hookspecs.Events")
        raised: list[tuple[PluginInfo, BaseException]] = []
        for plugin in self._loaded:
            if event not in plugin.info.hooks:
                continue
            try:
                getattr(plugin.manager.hook, event)(**arguments)
            except (Exception, SystemExit) as error:
                raised.append((plugin.info, error))
        if raised:
            raise PluginError([_event_problem(event, info, error) for info, error in raised]) from raised[0][1]

    def fire_error(self, run: RunInfo, error: BaseException) -> None:
        """Tells every plugin that a run ended by an error; what they raise is only logged."""
        try:
            self.fire("adaptkit_train_error", run=run, error=error)
        except PluginError as problem:
            logger.warning("%s", problem)

    def _find(self, kind: Kind, entries: Mapping[str, Entry[T]], name: str) -> T:
        if name in entries:
            return entries[name].value
        if failed := [failure for failure in self.failures if name in failure.names.get(kind, ())]:
            raise PluginError(_failure_problems(f"{kind} {name!r} cannot be used", failed))
        meant = [failure for failure in self.failures if _resembles(name, kind, failure, entries)]
        others = [failure for failure in self.failures if failure not in meant]
        unknown = self._unknown(kind, name, sorted(entries), others)
        if meant:
            raise PluginError([*_failure_problems(f"the plugin that may offer {name!r} is left out", meant), unknown])
        raise RecipeError([unknown])

    def _unknown(self, kind: Kind, name: str, allowed: Sequence[str], failures: Iterable[PluginFailure]) -> Problem:
        disabled = [info.distribution for info in self.plugins if info.disabled]
        hints = [
            _meant(name, allowed),
            *(f"left out: plugin {_title(failure)}: {failure.reason}" for failure in failures),
            f"left out by {DISABLE_VARIABLE}: {', '.join(disabled)}" if disabled else None,
        ]
        return Problem(
            f"unknown {kind} {name!r}",
            allowed=", ".join(allowed) or "nothing is registered",
            fix="\n".join(hint for hint in hints if hint) or None,
        )


def load_registry(builtins: Sequence[str] = BUILTIN_PLUGINS) -> Registry:
    """Loads every plugin anew and returns what they offer. Imports no torch.

    Args:
        builtins: Modules of the built-in plugins.

    Raises:
        PluginError: A built-in plugin has a fault; those of other distributions are only noted down.
    """
    return Registry(load_plugins(builtins))


def _merge(loaded: LoadedPlugins) -> tuple[dict[Kind, dict[str, Entry[Any]]], list[PluginFailure]]:
    """Sorts what plugins offer by kind and name; a name that two of them offer goes to neither."""
    offered: dict[tuple[Kind, str], list[tuple[PluginInfo, Any]]] = defaultdict(list)
    for plugin in loaded.plugins:
        for offer in plugin.offers:
            offered[offer.kind, offer.name].append((plugin.info, offer.value))
    entries: dict[Kind, dict[str, Entry[Any]]] = {kind: {} for kind in get_args(Kind)}
    clashes: list[PluginFailure] = []
    for (kind, name), owners in offered.items():
        info, value = owners[0]
        if len(owners) == 1:
            entries[kind][name] = Entry(value, info.distribution, info.version, value.__module__)
        else:
            clashes.extend(_clash(kind, name, [info for info, _ in owners]))
    return entries, clashes


def _clash(kind: Kind, name: str, owners: Sequence[PluginInfo]) -> Iterable[PluginFailure]:
    titles = " and ".join(_title(owner) for owner in owners)
    for owner in owners:
        yield PluginFailure(
            owner.distribution,
            owner.version,
            owner.entry_point,
            reason=f"{kind} {name!r} is registered by {titles}; neither is used",
            fix=f"keep one: {removal(owner.distribution for owner in owners)}",
            names={kind: (name,)},
        )


def _resembles(name: str, kind: Kind, failure: PluginFailure, taken: Container[str]) -> bool:
    """Whether a plugin with a fault is likely to offer what was meant by ``name``."""
    offered = [offer for offer in failure.names.get(kind, ()) if offer not in taken]
    return (
        did_you_mean(name, [failure.distribution.removeprefix("adaptkit-"), failure.entry_point, *offered]) is not None
    )


def _failure_problems(found: str, failures: Iterable[PluginFailure]) -> list[Problem]:
    """Returns one problem a reason, for the two sides of a clash have the same."""
    plugins: dict[tuple[str, str], list[str]] = defaultdict(list)
    for failure in failures:
        plugins[failure.reason, failure.fix].append(f"plugin {_title(failure)}")
    return [
        Problem(f"{found}: {reason}", where=", ".join(titles), fix=fix) for (reason, fix), titles in plugins.items()
    ]


def _event_problem(event: str, info: PluginInfo, error: BaseException) -> Problem:
    return Problem(
        f"{event} of plugin {_title(info)} raised {describe(error)}",
        fix=f"leave it out with {DISABLE_VARIABLE}={info.distribution}, or remove it ({removal([info.distribution])})",
    )


def _meant(name: str, allowed: Sequence[str]) -> str | None:
    """Returns which name was most likely meant: by its usual other name, without its prefix, or misspelt."""
    prefixed = (one for one in allowed if one.partition(":")[2] == name.lower())
    usual = OTHER_NAMES.get(name.lower().replace("_", "-"))
    known = usual if usual in allowed else next(prefixed, None)
    return f"did you mean {known!r}?" if known else did_you_mean(name, allowed)


def _title(plugin: PluginInfo | PluginFailure) -> str:
    return f"{plugin.distribution} {plugin.version}"
