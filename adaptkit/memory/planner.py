"""Plans of a recipe and of others like it, on the same rows and the same device; none is made twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adaptkit.errors import AdaptkitError
from adaptkit.memory.plan import MemoryPlan, planned_peak
from adaptkit.models.base.configs import can_recompute
from adaptkit.models.precision import Numerics, choose_numerics
from adaptkit.recipe import Recipe, parse_recipe
from adaptkit.training.preparation import Preparation, prepare

if TYPE_CHECKING:
    from adaptkit.registry import Registry
    from adaptkit.strategy import Strategy
    from adaptkit.task import Splits, Task

# Of a device's memory: the allocator cannot use all of it, because free pieces lie between used ones.
USABLE = 0.97
Changes = Mapping[str, Any]
# What a plan does not depend on: names of files, and what `Numerics` says already.
ELSEWHERE: Any = {"output": True, "model": {"precision"}, "training": {"compute", "learning_rate"}}


@dataclass
class Planner:
    """Makes plans, and the features that they and the run are made from.

    Attributes:
        registry: Of all that is installed.
        splits: The rows.
        device: Where the run would be.
        limit: Bytes that the device has.
        exact: Whether every block of a model is run.
        tokenizer_folder: Where a tokenizer that is trained on the rows is kept.
    """

    registry: Registry
    splits: Splits
    device: torch.device
    limit: int
    exact: bool = False
    tokenizer_folder: Path | None = None
    _prepared: dict[str, tuple[Task[Any], Preparation]] = field(default_factory=dict)
    _plans: dict[tuple[str, Numerics], MemoryPlan | AdaptkitError] = field(default_factory=dict)

    def plan(self, recipe: Recipe) -> MemoryPlan:
        """Plans a run; ``auto`` for checkpointing and offload is off, a strategy must be named.

        Raises:
            AdaptkitError: The parts do not go together, or the plan cannot be made.
        """
        found = self.try_plan(recipe)
        if isinstance(found, AdaptkitError):
            raise found
        return found

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
            strategy = self.registry.strategy(recipe.strategy.name)(recipe.strategy)
            numerics = choose_numerics(recipe, strategy, self.device)
        except AdaptkitError as error:
            return error
        key = recipe.model_dump_json(exclude=ELSEWHERE), numerics
        if key not in self._plans:
            try:
                self._plans[key] = self._made(recipe, strategy, numerics)
            except AdaptkitError as error:
                self._plans[key] = error
        return self._plans[key]

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

    def can_recompute(self, recipe: Recipe) -> bool:
        """Returns whether strategy and base can compute activations again."""
        strategy = self.registry.strategy(recipe.strategy.name)(recipe.strategy)
        _, prepared = self.prepared(recipe, strategy)
        return strategy.capabilities.gradient_checkpointing and can_recompute(prepared.source.config)

    def prepared(self, recipe: Recipe, strategy: Strategy[Any]) -> tuple[Task[Any], Preparation]:
        """Returns the task and the features, made once for all recipes that read the rows alike."""
        base = recipe.model.model_dump_json(exclude={"precision"})
        parts = (recipe.task.model_dump_json(), recipe.data.model_dump_json(), str(strategy.extra_positions()))
        key = "\n".join((base, *parts))
        if key not in self._prepared:
            task = self.registry.make_task(recipe.task)
            task.prepare(self.splits, recipe.data)
            kept = self.tokenizer_folder
            self._prepared[key] = task, prepare(recipe, strategy, task, self.splits, tokenizer_folder=kept)
        return self._prepared[key]

    def _made(self, recipe: Recipe, strategy: Strategy[Any], numerics: Numerics) -> MemoryPlan:
        task, prepared = self.prepared(recipe, strategy)
        rate = recipe.training.learning_rate or strategy.learning_rate(prepared.source.family)
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"learning_rate": rate})})
        factory = self.registry.optimizer(recipe.training.optimizer)
        # PyTorch warns of sparse tensors that are not checked, where nobody said that they need not be.
        with torch.sparse.check_sparse_tensor_invariants(enable=False):  # type: ignore[no-untyped-call]
            return planned_peak(recipe, strategy, task, prepared, numerics, factory, exact=self.exact)
