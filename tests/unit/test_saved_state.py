"""What is not saved must not change, and what trains must be saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptkit.errors import PluginError
from adaptkit.strategies.full import Full, FullOptions
from adaptkit.strategy import Strategy, StrategyOptions
from adaptkit.training.saved_state import Unsaved, check_saves_what_trains, title


class Bias(Strategy[StrategyOptions]):
    name = "bias-alone"

    def adapt(self, model: nn.Module, context: Any) -> nn.Module:
        return model


class Other(Bias):
    """Saves what the test says."""

    def __init__(self, state: Callable[[nn.Module], dict[str, Tensor]]) -> None:
        super().__init__(StrategyOptions(name=self.name))
        self._state = state

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        return self._state(model)


@pytest.fixture
def model() -> nn.Sequential:
    """Two layers of which the biases train; the last bias is no multiple of eight octets long."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return model


@pytest.fixture
def bias() -> Bias:
    return Bias(StrategyOptions(name=Bias.name))


def test_what_is_saved_under_other_names_or_as_copies_of_one_size_is_saved(model: nn.Module, bias: Bias) -> None:
    check_saves_what_trains(model, bias)
    check_saves_what_trains(model, Other(lambda m: {f"base.{n}": t for n, t in bias.state(m).items()}))
    check_saves_what_trains(model, Other(lambda m: {f"base.{n}": t.clone() for n, t in bias.state(m).items()}))


@pytest.mark.parametrize("saved", [(), ("0.bias",)], ids=["nothing", "a part"])
def test_a_state_without_what_trains_is_refused_and_names_it(model: nn.Module, saved: tuple[str, ...]) -> None:
    strategy = Other(lambda m: {name: m.get_parameter(name).detach() for name in saved})
    with pytest.raises(PluginError, match=r"trains \d tensor\(s\) that it does not save: .*1\.bias") as caught:
        check_saves_what_trains(model, strategy)
    assert caught.value.problems[0].fix
    assert all(name not in caught.value.problems[0].found for name in saved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "write",
    [
        lambda weight: weight.data.mul_(1.001 if weight.dtype == torch.float32 else 1.1),
        lambda weight: weight.data[0, 0].add_(1),
        lambda weight: weight.data[-1, -1].add_(1),
        lambda weight: weight.data.neg_(),
        lambda weight: setattr(weight, "data", torch.zeros_like(weight.data)),
    ],
    ids=["everywhere", "first", "last", "sign", "replaced"],
)
def test_any_change_of_what_is_frozen_is_noticed(
    model: nn.Sequential, bias: Bias, write: Callable[[Tensor], None], dtype: torch.dtype
) -> None:
    frozen = model[1].weight
    frozen.data = frozen.data.to(dtype)
    unsaved = Unsaved(model, bias)
    unsaved.check(model)
    write(frozen)
    with pytest.raises(PluginError, match=r"has changed 1 tensor\(s\) .*: 1\.weight;"):
        unsaved.check(model)


def test_a_frozen_tensor_of_zeros_that_all_become_one_number_is_noticed(model: nn.Sequential, bias: Bias) -> None:
    model[0].weight.data.zero_()
    unsaved = Unsaved(model, bias)
    model[0].weight.data.fill_(1e-3)
    with pytest.raises(PluginError, match=r"0\.weight"):
        unsaved.check(model)


def test_what_trains_or_is_saved_may_change(model: nn.Sequential, bias: Bias) -> None:
    strategy = Other(lambda m: {**bias.state(m), "scores": m.get_parameter("0.weight").detach()})
    unsaved = Unsaved(model, strategy)
    for parameter in (model[0].weight, model[0].bias, model[1].bias):
        parameter.data.add_(1)
    unsaved.check(model)


def test_a_strategy_is_named_with_the_distribution_that_it_came_from(bias: Bias) -> None:
    assert title(Full(FullOptions(name="full"))).startswith("strategy 'full' of adaptkit-train ")
    assert title(bias) == f"strategy 'bias-alone' of {__name__}"
