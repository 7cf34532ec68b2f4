"""The smallest change of a recipe by which a run fits."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from adaptkit.errors import AdaptkitError
from adaptkit.memory.plan import MemoryPlan
from adaptkit.memory.planner import Changes, Planner
from adaptkit.memory.trace import ACTIVATIONS, BASE, GRADIENTS, LOGITS, OPTIMIZER, PARTS
from adaptkit.memory.tracker import WORKSPACE
from adaptkit.recipe import Recipe

FEWEST_TOKENS = 128  # of a row: shorter ones would be another task
TILE = 64
PASSING = (ACTIVATIONS, LOGITS, WORKSPACE)  # what grows with the tokens of a pass
OF_A_PASS = (*PASSING, GRADIENTS)  # what depends on how a pass is taken: which gradients there are at its peak, too
EIGHT_BIT = {"adamw": "adamw-8bit"}


@dataclass(frozen=True)
class Fit:
    """A change by which a run fits.

    Attributes:
        changes: Dotted keys to values.
        plan: With them.
    """

    changes: Changes
    plan: MemoryPlan

    def __str__(self) -> str:
        """Returns the changes as they are pasted behind a command."""
        return " ".join(shlex.quote(f"{key}={_written(value)}") for key, value in self.changes.items())


def smallest_change(recipe: Recipe, planner: Planner, plan: MemoryPlan) -> Fit | None:
    """Finds the change that costs least by which a run fits: one alone if that does it, else several together.

    Args:
        recipe: That does not fit.
        planner: Knows the rows and the device.
        plan: Of the recipe.

    Returns:
        None: nothing helps.
    """
    for measure, lowers in MEASURES.items():
        if least_of(plan, lowers) > planner.usable:
            continue  # It cannot help alone, so that it need not be planned.
        changes = measure(recipe, planner, plan)
        found = _planned(recipe, planner, changes) if changes else None
        if changes and found and planner.fits(found):
            return Fit(changes, found)
    return _several(recipe, planner, plan)


def least_of(plan: MemoryPlan, parts: Collection[str]) -> int:
    """Returns the bytes that a run needs at least, whatever becomes of some parts of its plan."""
    return plan.needed - sum(plan.parts[part] for part in parts)


def _several(recipe: Recipe, planner: Planner, plan: MemoryPlan) -> Fit | None:
    """Takes one measure after the other, those that help, until the run fits."""
    taken: dict[str, Any] = {}
    for measure in MEASURES:
        changes = measure(recipe, planner, plan)
        found = _planned(recipe, planner, changes) if changes else None
        if changes is None or found is None or found.needed >= plan.needed:
            continue
        recipe, plan = planner.changed(recipe, changes), found
        taken |= changes
        if planner.fits(plan):
            return Fit(taken, plan)
    return None


def _planned(recipe: Recipe, planner: Planner, changes: Changes) -> MemoryPlan | None:
    try:
        return planner.plan(planner.changed(recipe, changes))
    except AdaptkitError:  # a change that does not go with the rest
        return None


# -- the measures, in the order of what they cost: time, then steps, then quality -------------------------------------


def selective_checkpointing(recipe: Recipe, planner: Planner, plan: MemoryPlan) -> Changes | None:
    """Computes again what is cheap to compute."""
    helps = recipe.training.recomputation is None and planner.can_recompute(recipe)
    return {"training.gradient_checkpointing": "selective"} if helps else None


def whole_checkpointing(recipe: Recipe, planner: Planner, plan: MemoryPlan) -> Changes | None:
    """Computes everything again but the inputs of the blocks: a third more work."""
    helps = recipe.training.recomputation != "whole" and planner.can_recompute(recipe)
    return {"training.gradient_checkpointing": True} if helps else None


def fewer_tokens(recipe: Recipe, planner: Planner, plan: MemoryPlan) -> Changes | None:
    """Cuts micro-batches to what there is room for; the longest row cannot be cut."""
    wanted = max(tokens_with_room(planner, plan), planner.longest_row(recipe))
    return {"training.micro_batch_tokens": wanted} if wanted < min(recipe.training.pass_tokens, plan.tokens) else None


def tokens_with_room(planner: Planner, plan: MemoryPlan) -> int:
    """Returns how many tokens of a pass there is room for, judged by what grows with them; 0: for none."""
    growing = sum(plan.parts[part] for part in PASSING)
    room = max(0, planner.usable - (plan.needed - growing))
    return int(plan.tokens * room / max(1, growing)) // TILE * TILE


def offload_embeddings(recipe: Recipe, planner: Planner, plan: MemoryPlan) -> Changes | None:
    """Keeps frozen embeddings in the host's memory."""
    return _offload(recipe, planner, ["embeddings"])


def offload_activations(recipe: Recipe, planner: Planner, plan: MemoryPlan) -> Changes | None:
    """Keeps the inputs of the blocks there too, which takes time on the bus."""
    if recipe.training.recomputation is None:
        return None
    return _offload(recipe, planner, ["embeddings", "activations"])


def _offload(recipe: Recipe, planner: Planner, what: list[str]) -> Changes | None:
    there = [] if recipe.training.offload == "auto" else recipe.training.offload
    if planner.device.type == "cpu" or set(what) <= set(there):
        return None
    return {"training.offload": sorted({*there, *what}, reverse=True)}


def smaller_states(recipe: Recipe, planner: Planner, plan: MemoryPlan) -> Changes | None:
    """Keeps the optimizer's states in 8 bits."""
    smaller = EIGHT_BIT.get(recipe.training.optimizer)
    return {"training.optimizer": smaller} if smaller else None


def fewer_bits(recipe: Recipe, planner: Planner, plan: MemoryPlan) -> Changes | None:
    """Stores a frozen base in 4 bits; where the base itself trains, low-rank updates on such a base train instead."""
    strategy = planner.registry.strategy(recipe.strategy.name)
    if recipe.model.init == "random" or recipe.model.precision in ("nf4", "int8"):
        return None
    if strategy.capabilities.quantized_base and not strategy.capabilities.changes_base:
        return {"model.precision": "nf4"} if recipe.strategy.name != "qlora" else None
    return {"strategy": "qlora", "model.precision": None}


def shorter_rows(recipe: Recipe, planner: Planner, plan: MemoryPlan) -> Changes | None:
    """Cuts rows to a half, a quarter … until the run fits."""
    length, shorter = planner.longest_row(recipe) // 2, list[Changes]()
    while length >= FEWEST_TOKENS:
        tokens = {"training.micro_batch_tokens": length} if length < recipe.training.pass_tokens else {}
        shorter.append({"data.max_length": length, **tokens})
        length //= 2
    if least_of(plan, OF_A_PASS) <= planner.usable:
        for changes in shorter[:-1]:
            found = _planned(recipe, planner, changes)
            if found and planner.fits(found):
                return changes
    return shorter[-1] if shorter else None


# With the parts of a plan that each can make smaller; all else that is there at the peak stays.
MEASURES: Mapping[Callable[[Recipe, Planner, MemoryPlan], Changes | None], Collection[str]] = {
    selective_checkpointing: OF_A_PASS,
    whole_checkpointing: OF_A_PASS,
    fewer_tokens: OF_A_PASS,
    offload_embeddings: (BASE, *OF_A_PASS),
    offload_activations: (BASE, *OF_A_PASS),
    smaller_states: (OPTIMIZER,),
    fewer_bits: PARTS,
    shorter_rows: OF_A_PASS,
}


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, list) else str(value)
