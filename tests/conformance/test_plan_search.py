"""The search with plans: what it finds is what trying everything finds, and nothing is planned twice."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from adaptkit import runner
from adaptkit.memory import auto, fit
from adaptkit.memory import plan as plan_module
from adaptkit.memory.plan import MemoryPlan
from adaptkit.memory.planner import USABLE, Planner
from adaptkit.planning import plan_run
from adaptkit.recipe import Recipe, parse_recipe
from adaptkit.registry import load_registry
from adaptkit.testing.bases import workshop

OPEN = {"micro_batch_tokens": "auto", "effective_batch": 4, "learning_rate": 1e-3}


def make_recipe(strategy: Any, output: str = "unused", **training: Any) -> Recipe:
    shop = workshop()
    rows = shop.rows("causal-lm")
    return parse_recipe(
        {
            "model": {"name": shop.base("llama"), "precision": "fp32"},
            "task": "causal-lm",
            "data": {"train": rows, "evaluation": rows},
            "strategy": strategy,
            "training": {"compute": "fp32", "max_steps": 2, **training},
            "output": output,
        },
        resolver=load_registry(),
    )


def make_planner(recipe: Recipe, limit: int = 2**34) -> Planner:
    registry = load_registry()
    splits = runner.check(recipe, *runner.choose(recipe, registry), registry)
    return Planner(registry, splits, torch.device("cuda"), limit)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the strategies of all plans that were made."""
    made: list[str] = []
    trace = plan_module._plan

    def counted(build: Any, blueprint: Any, *arguments: Any, **options: Any) -> MemoryPlan:
        made.append(blueprint.strategy.name)
        return trace(build, blueprint, *arguments, **options)

    monkeypatch.setattr(plan_module, "_plan", counted)
    return made


def for_a_gpu(registry: Any, splits: Any, **options: Any) -> Planner:
    """Stands in for what makes a run's planner: this run has a GPU by plan, and trains on the CPU."""
    return Planner(registry, splits, torch.device("cuda"), 2**34, **options)


def around(planner: Planner, plans: list[MemoryPlan]) -> Iterator[None]:
    """Gives the planner limits so that each of some plans just fits, and just does not."""
    for needed in sorted({plan.needed for plan in plans}):
        for limit in (needed + 1000, needed - 1000):
            planner.limit = int(limit / USABLE)
            yield


def tried_all(recipe: Recipe, planner: Planner) -> tuple[Recipe, list[str]]:
    """The search without any thought: every candidate is planned."""
    candidates = list(auto._candidates(recipe, planner))
    plans = [(candidate, planner.plan(candidate)) for candidate in candidates]
    for candidate, plan in plans:
        if planner.fits(plan):
            return auto._grown(recipe, candidate, plan, planner)
    candidate, plan = min(plans, key=lambda pair: pair[1].needed)
    return candidate, [f"{auto._said(candidate, recipe)}by plan that still does not fit: {auto._needs(plan, planner)}"]


@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_what_is_chosen_is_what_trying_everything_finds(strategy: str) -> None:
    recipe = make_recipe(strategy, **OPEN)
    planner = make_planner(recipe)
    plans = [planner.plan(candidate) for candidate in auto._candidates(recipe, planner)]
    for _ in around(planner, plans):
        assert auto.settle_training(recipe, planner) == tried_all(recipe, planner)


def test_what_cannot_fit_is_not_planned(traced: list[str]) -> None:
    recipe = make_recipe("full", **OPEN)
    planner = make_planner(recipe)
    candidates = list(auto._candidates(recipe, planner))
    planner.limit = planner.plan(candidates[0]).context
    fresh = make_planner(recipe, planner.limit)
    traced.clear()
    assert auto._first_that_fits(candidates, fresh) is None
    assert len(traced) == 2  # the usual one, and the first whose embeddings wait in the host
    assert all(planner.plan(candidate).needed > planner.usable for candidate in candidates)


@pytest.mark.parametrize("strategy", ["lora", "full"])
def test_the_smallest_change_is_that_of_a_search_that_plans_every_measure(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"gradient_checkpointing": False, "offload": [], **OPEN, "micro_batch_tokens": 4096}
    recipe = make_recipe(strategy, **settings)
    planner = make_planner(recipe)
    usual = planner.plan(recipe)
    planner.limit = 0
    fit.smallest_change(recipe, planner, usual)  # plans whatever there is
    plans = [plan for plan in planner._plans.values() if isinstance(plan, MemoryPlan) and plan.needed < usual.needed]
    for _ in around(planner, plans):
        found = fit.smallest_change(recipe, planner, usual)
        with monkeypatch.context() as patch:
            patch.setattr(fit, "least_of", lambda plan, parts: 0)
            assert str(fit.smallest_change(recipe, planner, usual)) == str(found)


def test_a_plan_is_made_once_whoever_asks(traced: list[str]) -> None:
    recipe = make_recipe("lora")
    planner = make_planner(recipe)
    first = plan_run(recipe, planner)
    elsewhere = first.recipe.model_copy(update={"output": "elsewhere"})
    assert planner.plan(elsewhere) is first.plan
    assert traced == ["lora"]
    assert planner.plan(planner.changed(first.recipe, {"training.effective_batch": 1})) is not first.plan


def test_what_cannot_be_planned_is_not_tried_again(traced: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "Trace", None)
    recipe = make_recipe("lora")
    planner = make_planner(recipe)
    assert not plan_run(recipe, planner).fits
    tries = len(traced)
    assert planner.try_plan(auto.without_auto(recipe)) is planner.try_plan(auto.without_auto(recipe))
    assert len(traced) == tries


def test_a_run_is_planned_once(tmp_path: Path, traced: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "make_planner", for_a_gpu)
    console = Console(file=StringIO(), width=200)
    finished = runner.run(make_recipe("lora", str(tmp_path / "run")), console=console)
    assert traced == ["lora"]
    assert finished.results["planned_peak_bytes"] > 0


def test_a_run_turns_its_rows_into_features_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptkit.memory import planner as planner_module

    prepared: list[str] = []
    prepare = planner_module.prepare

    def counted(*arguments: Any, **options: Any) -> Any:
        prepared.append("rows")
        return prepare(*arguments, **options)

    monkeypatch.setattr(planner_module, "prepare", counted)
    monkeypatch.setattr(runner, "make_planner", for_a_gpu)
    runner.run(make_recipe("lora", str(tmp_path / "run"), **OPEN), console=Console(file=StringIO()))
    assert prepared == ["rows"]


def test_plans_leave_the_base_that_a_run_is_built_from_alone() -> None:
    recipe = make_recipe("lora")
    planner = make_planner(recipe)
    _, prepared = planner.prepared(recipe, load_registry().strategy("lora")(recipe.strategy))
    config, rows = copy.deepcopy(prepared.source.config.to_dict()), copy.deepcopy(prepared.train)
    for name in ("qlora", "prefix-tuning", "full", "peft:prompt-tuning", "peft:ia3"):
        plan_run(planner.changed(recipe, {"strategy": name, "model.precision": None}), planner)
    assert prepared.source.config.to_dict() == config
    assert prepared.train == rows


def test_sparse_tensors_are_planned_without_a_warning() -> None:
    recipe = make_recipe("peft:shira")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        plan_run(recipe, make_planner(recipe))
    assert not [warning for warning in heard if "Sparse invariant" in str(warning.message)]
