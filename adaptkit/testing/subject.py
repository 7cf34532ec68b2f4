"""A strategy on a tiny base: what the checks of strategies are about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from adaptkit.errors import ModelError, RecipeError
from adaptkit.recipe import Precision, Recipe, parse_recipe
from adaptkit.registry import Entry, Registry, load_registry
from adaptkit.strategy import Capabilities, Strategy
from adaptkit.testing.bases import BASES, TinyBase, workshop
from adaptkit.testing.check import NotApplicable
from adaptkit.testing.rows import ROWS, TASK_OPTIONS

if TYPE_CHECKING:
    from torch import nn

    from adaptkit.strategy import AdaptContext
    from adaptkit.testing.trial import Trial

# Under weight decay a tensor without a gradient would change nevertheless; a constant rate makes all steps alike.
TRAINING: Mapping[str, Any] = {
    "effective_batch": ROWS,
    "max_steps": 40,
    "compute": "fp32",
    "weight_decay": 0.0,
    "warmup": 0.0,
    "schedule": "constant",
}
MAX_LENGTH = 48


@dataclass(frozen=True)
class Subject:
    """A strategy with its options, and the base on which it is tried.

    Attributes:
        strategy: The class.
        options: Of the recipe's ``strategy:`` besides the name.
        base_name: One of `adaptkit.testing.bases.BASES`.
        trainable_parameters: The closed form of how many parameters train, of the base with its head (before the
            strategy adapts it) and the context; None: the author gives none.
    """

    strategy: type[Strategy[Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    base_name: str = "bert"
    trainable_parameters: Callable[[nn.Module, AdaptContext], int] | None = None

    @property
    def name(self) -> str:
        """The name of the strategy."""
        return self.strategy.name

    @property
    def known_failures(self) -> Mapping[str, str]:
        """What the strategy says it cannot pass."""
        return self.strategy.known_failures

    @property
    def capabilities(self) -> Capabilities:
        """What the strategy declares."""
        return self.strategy.capabilities

    @property
    def base(self) -> TinyBase:
        """What the base is."""
        return BASES[self.base_name]

    @property
    def registry(self) -> Registry:
        """All that is installed, and this class under its name, installed or not."""
        return _registry_with(self.strategy)

    def make(self) -> Strategy[Any]:
        """Returns a new instance of the strategy, its options validated."""
        return self.strategy(self.strategy.Options.model_validate({"name": self.strategy.name, **self.options}))

    def tasks(self) -> list[str]:
        """Returns the built-in tasks that the strategy says it serves on this base, the base's usual one first."""
        served = self.capabilities.tasks
        return [
            task
            for task in dict.fromkeys((self.base.task, *sorted(_built_in_tasks())))
            if self.base.family in _built_in_tasks()[task].families
            and (served is None or task in served)
            and (self.capabilities.generates or not _built_in_tasks()[task].generates)
        ]

    def recipe(self, *, task: str | None = None, precision: Precision | None = None, **training: Any) -> Recipe:
        """Returns the recipe of a run of this strategy on this base.

        Args:
            task: A built-in task; default: the first of `tasks`.
            precision: Storage of the base; default: fp32, or what the strategy needs.
            **training: Changes of the ``training`` section.

        Raises:
            NotApplicable: The strategy does not serve the base.
        """
        if self.base.family not in self.capabilities.families:
            raise NotApplicable(f"{self.base.family} models are not declared")
        if not (tasks := self.tasks()):
            raise NotApplicable(f"no built-in task for {self.base.family} models is declared")
        chosen = task or tasks[0]
        rows = workshop().rows(chosen)
        default: Precision | None = None if self.make().base_precision() else "fp32"
        return parse_recipe(
            {
                "model": {"name": workshop().base(self.base_name), "precision": precision or default},
                "task": {"name": chosen, **TASK_OPTIONS.get(chosen, {})},
                "data": {"train": rows, "evaluation": rows, "max_length": MAX_LENGTH},
                "strategy": {"name": self.strategy.name, **self.options},
                "training": {**TRAINING, **training},
                "output": str(workshop().folder / "run"),
            },
            resolver=self.registry,
        )

    def trial(
        self,
        *,
        task: str | None = None,
        precision: Precision | None = None,
        initialize: bool = True,
        **training: Any,
    ) -> Trial:
        """Returns a run of this strategy on this base before its first step.

        Args:
            task: As for `recipe`.
            precision: As for `recipe`.
            initialize: Whether the strategy gives its adapter first values, as when a run begins.
            **training: Changes of the ``training`` section.

        Raises:
            NotApplicable: The strategy does not serve the base, or refuses it with a message to the user.
        """
        from adaptkit.testing.trial import make_trial

        recipe = self.recipe(task=task, precision=precision, **training)
        try:
            return make_trial(recipe, self.make(), self.registry, initialize=initialize)
        except (ModelError, RecipeError) as error:
            raise NotApplicable(f"refused: {error.problems[0].found}") from error


def subjects(
    strategy: type[Strategy[Any]] | Strategy[Any],
    trainable_parameters: Callable[[nn.Module, AdaptContext], int] | None = None,
) -> list[Subject]:
    """Returns a strategy on every tiny base.

    Args:
        strategy: A class, which gets its default options, or an instance with the options to be used.
        trainable_parameters: As in `Subject`.
    """
    cls, options = strategy, {}
    if isinstance(strategy, Strategy):
        cls, options = type(strategy), strategy.options.model_dump(mode="json", exclude={"name"}, exclude_unset=True)
    assert isinstance(cls, type)
    return [Subject(cls, options, base, trainable_parameters) for base in BASES]


@cache
def _registry_with(strategy: type[Strategy[Any]]) -> Registry:
    registry = load_registry()
    known = registry.strategies.get(strategy.name)
    if known is None or known.value is not strategy:
        entry = Entry(strategy, "the strategy under test", "", strategy.__module__)
        registry.strategies = {**registry.strategies, strategy.name: entry}
    return registry


@cache
def _built_in_tasks() -> dict[str, Any]:
    from adaptkit.testing.rows import rows_by_task

    tasks = load_registry().tasks
    return {name: tasks[name].value.capabilities for name in rows_by_task()}
