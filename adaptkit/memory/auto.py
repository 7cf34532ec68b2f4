"""What a recipe leaves to the memory, settled: ``auto`` becomes what fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from adaptkit.errors import AdaptkitError, FitError
from adaptkit.memory.fit import OF_A_PASS, least_of, tokens_with_room
from adaptkit.memory.plan import MemoryPlan
from adaptkit.memory.planner import Changes, Planner
from adaptkit.recipe import Recipe

if TYPE_CHECKING:
    from adaptkit.registry import AutoOptions

GIB = 2**30
TOKENS = 4096  # of a forward pass where there is room: a GPU is busy with so many
MOST_TOKENS = 16384
USUAL: Changes = {"micro_batch_tokens": TOKENS, "gradient_checkpointing": False, "offload": []}
# From what costs nothing to what costs most time; each beside those before.
SAVINGS: tuple[Changes, ...] = (
    {},
    {"gradient_checkpointing": "selective"},
    {"gradient_checkpointing": True},
    {"offload": ["embeddings"]},
    {"offload": ["embeddings", "activations"]},
)


def without_auto(recipe: Recipe) -> Recipe:
    """Returns a recipe with the usual value for every ``auto``: that of a device whose memory need not be looked at."""
    return _with(recipe, USUAL)


def settle_training(recipe: Recipe, planner: Planner) -> tuple[Recipe, list[str]]:
    """Replaces ``auto`` in a recipe's ``training`` by what fits and costs least time.

    Args:
        recipe: That names its strategy.
        planner: Knows the rows and the device.

    Returns:
        The recipe, and lines that say what was chosen and why. Where nothing fits, it is what needs least: that is
        tried before the first step.
    """
    usual = without_auto(recipe)
    if planner.device.type == "cpu" or not _open(recipe):
        return usual, []
    plan = planner.try_plan(usual)
    if isinstance(plan, AdaptkitError):
        return usual, [f"how much memory the run needs is not known: {plan.problems[0].found}"]
    candidates = list(_candidates(recipe, planner))
    found = _first_that_fits(candidates, planner)
    if found is not None:
        return _grown(recipe, *found, planner)
    candidate, plan = _least(candidates, planner)
    return candidate, [f"{_said(candidate, recipe)}by plan that still does not fit: {_needs(plan, planner)}"]


def settle_strategy(recipe: Recipe, options: AutoOptions, planner: Planner) -> tuple[Recipe, list[str]]:
    """Chooses the first of several strategies whose run fits.

    Returns:
        The recipe with it, and a line for each that was rejected.

    Raises:
        FitError: None fits.
    """
    rejected: list[str] = []
    for name in options.among:
        try:
            candidate = planner.changed(recipe, {"strategy": name})
            planner.plan(without_auto(candidate))
        except AdaptkitError as error:
            rejected.append(f"{name}: {error.problems[0].found}")
            continue
        candidates = list(_candidates(candidate, planner))
        if _first_that_fits(candidates, planner) is not None:
            plan = planner.plan(settle_training(candidate, planner)[0])
            return candidate, [*rejected, f"{name} is chosen: {_needs(plan, planner)}"]
        # Who saves most needs least: the last two, one with as many tokens as usual, one with fewer.
        _, plan = _least([candidates[0], *candidates[-2:]], planner)
        rejected.append(f"{name}: does not fit, {_needs(plan, planner)}")
    raise FitError(
        f"no strategy of {', '.join(options.among)} fits into {planner.limit / GIB:.1f} GiB",
        where="strategy",
        allowed="\n".join(rejected),
        fix="`adaptkit plan RECIPE strategy=qlora` names the smallest change that fits; or take a smaller base",
    )


def _open(recipe: Recipe) -> list[str]:
    """Returns the settings that are left to the memory."""
    return [key for key in USUAL if getattr(recipe.training, key) == "auto"]


def _with(recipe: Recipe, values: Changes) -> Recipe:
    """Returns a recipe with values for what it leaves open; what it says stays."""
    chosen = {key: value for key, value in values.items() if key in _open(recipe)}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=chosen)})


def _candidates(recipe: Recipe, planner: Planner) -> Iterator[Recipe]:
    """Yields recipes that need less and less memory, and more and more time; on a CPU only the usual one."""
    if planner.device.type == "cpu" or not _open(recipe):
        yield without_auto(recipe)
        return
    values = dict(USUAL)
    if not planner.can_recompute(recipe):
        recipe = _with(recipe, {"gradient_checkpointing": False})
    longest = planner.longest_row(recipe) if "micro_batch_tokens" in _open(recipe) else TOKENS
    before: Recipe | None = None
    for savings in SAVINGS:
        values |= savings
        shorter = values | {"micro_batch_tokens": min(TOKENS, longest)}
        for chosen in (values, shorter) if values["gradient_checkpointing"] is True else (values,):
            candidate = _with(recipe, chosen)
            waits_for_nothing = "activations" in candidate.training.offload and candidate.training.recomputation is None
            if candidate != before and not waits_for_nothing:
                yield candidate
            before = candidate


def _first_that_fits(candidates: Sequence[Recipe], planner: Planner) -> tuple[Recipe, MemoryPlan] | None:
    """Returns the first recipe that fits, with its plan; those that cannot fit are not planned."""
    least: dict[bool, int] = {}  # what is there however little a pass needs, with the embeddings in the host or not
    for candidate in candidates:
        offloads = "embeddings" in candidate.training.offload
        if least.get(offloads, 0) > planner.usable:
            continue
        plan = planner.try_plan(candidate)
        if isinstance(plan, AdaptkitError):
            continue
        if planner.fits(plan):
            return candidate, plan
        least[offloads] = least_of(plan, OF_A_PASS)
    return None


def _least(candidates: Sequence[Recipe], planner: Planner) -> tuple[Recipe, MemoryPlan]:
    """Returns the first of those recipes that need least, with its plan."""
    plans = ((candidate, planner.try_plan(candidate)) for candidate in candidates)
    planned = [(candidate, plan) for candidate, plan in plans if isinstance(plan, MemoryPlan)]
    return min(planned, key=lambda pair: pair[1].needed)


def _grown(recipe: Recipe, candidate: Recipe, plan: MemoryPlan, planner: Planner) -> tuple[Recipe, list[str]]:
    """Gives a run that fits as many tokens a pass as there is room for, where their number is open."""
    if "micro_batch_tokens" in _open(recipe):
        tokens = min(MOST_TOKENS, tokens_with_room(planner, plan))
        larger = _with(recipe, _values(candidate) | {"micro_batch_tokens": tokens})
        found = planner.try_plan(larger) if tokens > candidate.training.pass_tokens else plan
        if not isinstance(found, AdaptkitError) and found is not plan and planner.fits(found):
            candidate, plan = larger, found
    return candidate, [f"{_said(candidate, recipe)}by plan the run needs {_needs(plan, planner)}"]


def _values(recipe: Recipe) -> dict[str, object]:
    return {key: getattr(recipe.training, key) for key in USUAL}


def _said(candidate: Recipe, recipe: Recipe) -> str:
    """Returns what was chosen, as far as it is not what one expects."""
    chosen = {key: value for key, value in _values(candidate).items() if key in _open(recipe) and value}
    return "".join(f"{key}: {value}; " for key, value in chosen.items())


def _needs(plan: MemoryPlan, planner: Planner) -> str:
    return f"{plan.needed / GIB:.2f} GiB of {planner.limit / GIB:.1f} GiB"
