"""How many parameters train, by formula, on every tiny base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from torch import nn

from adaptkit import AdaptContext, linear_layers
from adaptkit.registry import load_registry
from adaptkit.testing import STRATEGY_CHECKS
from adaptkit.testing.bases import BASES
from adaptkit.testing.subject import Subject

(CHECK,) = (check for check in STRATEGY_CHECKS if check.name == "check_trainable_parameters")
RANK, TOKENS = 16, 16
# Layers that attend, each with the width of its keys and values; T5's are two encoder layers, and two decoder layers
# with two kinds of attention each. Llama has 2 heads of 32 for them.
ATTENTION = {"bert": (2, 128), "gpt2": (2, 128), "llama": (2, 64), "t5": (2 + 2 * 2, 128)}


def new(model: nn.Module, context: AdaptContext) -> int:
    return sum(model.get_parameter(name).numel() for name in context.new_parameters)


def everything(model: nn.Module, context: AdaptContext) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def low_rank(model: nn.Module, context: AdaptContext) -> int:
    """A is (r, in) and B (out, r), so that a weight of (out, in) costs r (in + out)."""
    layers: Any = [model.get_submodule(name) for name in linear_layers(model, without=context.whole_modules)]
    return RANK * sum(sum(layer.weight.shape) for layer in layers) + new(model, context)


def prefixes(base: str) -> Callable[[nn.Module, AdaptContext], int]:
    layers, width = ATTENTION[base]
    return lambda model, context: layers * 2 * TOKENS * width + new(model, context)


FORMS: Mapping[str, Callable[[nn.Module, AdaptContext], int]] = {
    "full": everything,
    "linear-probe": new,
    "lora": low_rank,
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("strategy", [*FORMS, "prefix-tuning"])
def test_as_many_parameters_train_as_the_formula_says(strategy: str, base: str) -> None:
    form = FORMS.get(strategy) or prefixes(base)
    CHECK(Subject(load_registry().strategy(strategy), {}, base, form))
