"""How a run computes and how its base is stored, where the recipe leaves it open."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adaptkit.models import precision
from adaptkit.models.base.reading import storage
from adaptkit.models.precision import choose_numerics
from adaptkit.recipe import Recipe, StrategyOptions, TaskOptions
from adaptkit.strategy import Capabilities, Strategy


class Frozen(Strategy[StrategyOptions]):
    name = "frozen"

    def adapt(self, model: Any, context: Any) -> Any:
        return model


class Trains(Frozen):
    capabilities = Capabilities(changes_base=True)


class Packed(Frozen):
    def base_precision(self) -> Any:
        return "nf4"


def chosen(
    strategy: type[Frozen], *, fast: bool, monkeypatch: pytest.MonkeyPatch, stored: str | None = None, **training: Any
) -> tuple[str, bool]:
    monkeypatch.setattr(precision, "fast_bf16", lambda device: fast)
    recipe = recipe_of(strategy, stored, **training)
    numerics = choose_numerics(recipe, strategy(recipe.strategy))
    return numerics.precision, numerics.bf16


def recipe_of(strategy: type[Frozen], stored: str | None, **training: Any) -> Recipe:
    return Recipe(
        model={"name": "base", "precision": stored},  # type: ignore[arg-type]
        task=TaskOptions(name="sorting"),
        data={"train": "rows.jsonl"},  # type: ignore[arg-type]
        strategy=StrategyOptions(name="frozen"),
        training=training,  # type: ignore[arg-type]
        output="runs/one",
    )


@pytest.mark.parametrize(
    ("strategy", "fast", "stored", "compute", "expected"),
    [
        (Frozen, True, None, "auto", ("bf16", True)),
        (Frozen, False, None, "auto", ("fp32", False)),
        (Frozen, True, None, "fp32", ("fp32", False)),
        (Frozen, False, None, "bf16", ("bf16", True)),
        (Frozen, True, "fp32", "auto", ("fp32", True)),
        (Frozen, False, "bf16", "auto", ("bf16", True)),
        (Trains, True, None, "auto", ("fp32", True)),
        (Trains, False, None, "bf16", ("fp32", True)),
        (Packed, True, None, "auto", ("nf4", True)),
        (Packed, False, None, "auto", ("nf4", False)),
        (Packed, True, None, "fp32", ("nf4", False)),
        (Packed, False, None, "bf16", ("nf4", True)),
    ],
)
def test_what_a_recipe_leaves_open(
    strategy: type[Frozen],
    fast: bool,
    stored: str | None,
    compute: str,
    expected: tuple[str, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert chosen(strategy, fast=fast, monkeypatch=monkeypatch, stored=stored, compute=compute) == expected


@pytest.mark.parametrize("fast", [True, False])
def test_a_run_writes_down_what_its_machine_chose(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, strategy = recipe_of(Packed, None), Packed(StrategyOptions(name="frozen"))
    monkeypatch.setattr(precision, "fast_bf16", lambda device: fast)
    written = precision.settle(recipe, strategy)
    monkeypatch.setattr(precision, "fast_bf16", lambda device: not fast)
    assert precision.settle(written, strategy) == written
    assert choose_numerics(written, strategy).bf16 == fast


@pytest.mark.parametrize("bf16", [True, False])
def test_matrix_products_are_computed_as_chosen(bf16: bool) -> None:
    numerics = precision.Numerics(torch.device("cpu"), "fp32", bf16)
    with numerics.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if bf16 else torch.float32)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cpu"])
def test_weights_are_read_straight_onto_the_device_that_trains(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    options = storage(precision.Numerics(torch.device(device), "nf4", True))
    wanted = {"cuda": torch.device("cuda", 0), "cuda:1": torch.device("cuda", 1)}.get(device)
    assert options.get("device_map") == ({"": wanted} if wanted else None)
    assert options["dtype"] == torch.bfloat16
