"""Plans of a recipe and of others like it, on the same rows and the same device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adaptkit.errors import AdaptkitError
from adaptkit.memory.plan import MemoryPlan, planned_peak
from adaptkit.models.precision import choose_numerics
from adaptkit.recipe import Recipe, parse_recipe
from adaptkit.training.preparation import Preparation, prepare

if TYPE_CHECKING:
    import torch

    from adaptkit.registry import Registry
    from adaptkit.strategy import Strategy
    from adaptkit.task import Splits, Task

# Of a device's memory: the allocator cannot use all of it, because free pieces lie between used ones.
USABLE = 0.97
Changes = Mapping[str, Any]


@dataclass
class Planner:
    """Makes plans.

    Attributes:
        registry: Of all that is installed.
        splits: The rows.
        device: Where the run would be.
        limit: Bytes that the device has.
        exact: Whether every block of a model is run.
    """

    registry: Registry
    splits: Splits
    device: torch.device
    limit: int
    exact: bool = False
    _prepared: dict[str, tuple[Task[Any], Preparation]] = field(default_factory=dict)

    def plan(self, recipe: Recipe) -> MemoryPlan:
        """Plans a run; ``auto`` for checkpointing and offload is off, a strategy must be named.

        Raises:
            AdaptkitError: The parts do not go together, or the plan cannot be made.
        """
        strategy = self.registry.strategy(recipe.strategy.name)(recipe.strategy)
        task, prepared = self.prepared(recipe, strategy)
        recipe = self._with_rate(recipe, strategy, prepared)
        numerics = choose_numerics(recipe, strategy, self.device)
        factory = self.registry.optimizer(recipe.training.optimizer)
        return planned_peak(recipe, strategy, task, prepared, numerics, factory, exact=self.exact)

    def fits(self, plan: MemoryPlan) -> bool:
        """Returns whether a run has room on the device."""
        return plan.needed <= self.usable

    @property
    def usable(self) -> int:
        """Bytes that tensors and context may take."""
        return int(USABLE * self.limit)

    def try_plan(self, recipe: Recipe) -> MemoryPlan | AdaptkitError:
        """Plans a run, or returns why it cannot be."""
        try:
            return self.plan(recipe)
        except AdaptkitError as error:
            return error

    def changed(self, recipe: Recipe, changes: Changes) -> Recipe:
        """Returns a recipe with other values.

        Args:
            recipe: Without stages.
            changes: Dotted keys to values; ``strategy`` takes the place of the whole section.

        Raises:
            RecipeError: It would not be a recipe.
        """
        values = recipe.model_dump()
        for key, value in changes.items():
            *sections, last = key.split(".")
            place = values
            for section in sections:
                place = place[section]
            place[last] = value
        return parse_recipe(values, resolver=self.registry)

    def longest_row(self, recipe: Recipe) -> int:
        """Returns the tokens of the longest training row."""
        strategy = self.registry.strategy(recipe.strategy.name)(recipe.strategy)
        task, prepared = self.prepared(recipe, strategy)
        return max(task.length(row) for row in prepared.train)

    def prepared(self, recipe: Recipe, strategy: Strategy[Any]) -> tuple[Task[Any], Preparation]:
        """Returns the task and the features, made once for all recipes that read the rows alike."""
        parts = (recipe.model, recipe.task, recipe.data)
        key = "\n".join([*(part.model_dump_json() for part in parts), str(strategy.extra_positions())])
        if key not in self._prepared:
            task = self.registry.make_task(recipe.task)
            task.prepare(self.splits, recipe.data)
            self._prepared[key] = task, prepare(recipe, strategy, task, self.splits)
        return self._prepared[key]

    def _with_rate(self, recipe: Recipe, strategy: Strategy[Any], prepared: Preparation) -> Recipe:
        rate = recipe.training.learning_rate or strategy.learning_rate(prepared.source.family)
        return recipe.model_copy(update={"training": recipe.training.model_copy(update={"learning_rate": rate})})
