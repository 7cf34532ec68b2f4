from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from adaptkit.errors import CheckpointError, TrainingError
from adaptkit.recipe import TrainingSpec
from adaptkit.training.checkpoint import read_checkpoint, write_checkpoint
from adaptkit.training.optim import (
    adaptkit_register_optimizers,
    check_groups,
    decay_groups,
    load_optimizer_state,
    make_scheduler,
)

OPTIMIZERS: dict[str, Any] = {}
adaptkit_register_optimizers(OPTIMIZERS.__setitem__)
EIGHT_BIT = {"adamw-8bit", "paged-adamw-8bit", "lion-8bit"}
pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


def tiny_model(seed: int = 0) -> nn.Module:
    """A model with a matrix above bitsandbytes' 4096 elements for 8-bit states, and smaller tensors."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(40, 150), nn.LayerNorm(150), nn.Tanh(), nn.Linear(150, 3))


class Trainee:
    """A model, its optimizer and its schedule, on data that is a function of the step."""

    def __init__(self, name: str, seed: int = 0) -> None:
        settings = TrainingSpec(optimizer=name, learning_rate=1e-3)
        self.model = tiny_model(seed)
        self.optimizer = OPTIMIZERS[name](decay_groups(self.model, 1e-3, 0.1), settings)
        self.schedule = make_scheduler(self.optimizer, "linear", total_steps=6, warmup=0.3)

    def train(self, steps: range) -> None:
        for step in steps:
            data = torch.randn(16, 40, generator=torch.Generator().manual_seed(step))
            self.model(data).square().mean().backward()
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        return {part: getattr(self, part).state_dict() for part in ("model", "optimizer", "schedule")}

    def load(self, state: dict[str, Any], order: tuple[str, ...] = ("model", "optimizer", "schedule")) -> None:
        for part in order:
            if part == "optimizer":
                load_optimizer_state(self.optimizer, state[part])
            else:
                getattr(self, part).load_state_dict(state[part])


def tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for value in values for tensor in tensors(value)]


@pytest.mark.parametrize("order", [("model", "optimizer", "schedule"), ("schedule", "optimizer", "model")])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_resumed_run_is_bit_identical_to_one_that_never_stopped(tmp_path: Path, name, order):
    whole = Trainee(name)
    whole.train(range(6))

    first = Trainee(name)
    first.train(range(3))
    halfway = first.state()
    path = write_checkpoint(tmp_path, 3, halfway)
    if name in EIGHT_BIT:
        assert torch.uint8 in {tensor.dtype for tensor in tensors(halfway["optimizer"])}

    resumed = Trainee(name, seed=1)
    resumed.load(read_checkpoint(path), order)
    for before, after in zip(tensors(halfway), tensors(resumed.state()), strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)
    resumed.train(range(3, 6))

    for expected, found in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(expected, found)
    assert not torch.equal(resumed.model[0].weight, first.model[0].weight)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_learns(name):
    trainee = Trainee(name)
    data = torch.randn(16, 40)
    before = trainee.model(data).square().mean()
    trainee.train(range(6))
    assert trainee.model(data).square().mean() < before


def test_beta2_of_the_recipe_reaches_the_adam_family():
    settings = TrainingSpec(beta2=0.95)
    for name in ("adamw", "adamw-8bit", "paged-adamw-8bit"):
        optimizer = OPTIMIZERS[name](decay_groups(tiny_model(), 1e-3, 0.1), settings)
        assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}


@pytest.mark.parametrize("name", ["adamw-8bit", "paged-adamw-8bit", "lion-8bit"])
def test_a_plan_for_a_gpu_makes_states_without_asking_the_driver(name):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        large = nn.Parameter(torch.empty(512, 512, device="cuda"))
        large.grad = torch.empty_like(large)
    optimizer = OPTIMIZERS[name]([{"params": [large], "lr": 1e-3}], TrainingSpec(learning_rate=1e-3))
    with mode:
        optimizer.step()
    states = [state for state in tensors(optimizer.state[large]) if state.shape == large.shape]
    assert {state.dtype for state in states} == {torch.uint8}
    assert len(states) == (1 if name == "lion-8bit" else 2)


def test_state_of_other_groups_is_a_checkpoint_error():
    for name in OPTIMIZERS:
        trainee = Trainee(name)
        state = trainee.optimizer.state_dict()
        state["param_groups"] = state["param_groups"][:1]
        with pytest.raises(CheckpointError, match="does not belong"):
            load_optimizer_state(trainee.optimizer, state)


def test_naming_the_optimizers_imports_neither_torch_nor_bitsandbytes():
    code = "import adaptkit.training.optim, sys; assert not {'torch', 'bitsandbytes'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_matrices_decay_and_biases_and_norms_do_not():
    model = tiny_model()
    decayed, others = decay_groups(model, lr=1e-3, weight_decay=0.1)
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert decayed["lr"] == others["lr"] == 1e-3
    check_groups(model, [decayed, others])


def test_frozen_parameters_are_in_no_group_and_empty_groups_are_dropped():
    model = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    (group,) = decay_groups(model, 1e-3, 0.1)
    assert len(group["params"]) == 3
    check_groups(model, [group])
    assert decay_groups(model.requires_grad_(False), 1e-3, 0.1) == []


def test_a_tied_parameter_is_trained_once():
    model = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["embedding"].weight
    (group,) = decay_groups(model, 1e-3, 0.1)
    assert len(group["params"]) == 1
    check_groups(model, [group])


def test_every_mistake_in_the_groups_is_named_at_once():
    model = tiny_model()
    model[0].weight.requires_grad_(False)
    groups = [{"params": [model[0].weight, model[0].bias, model[3].weight]}, {"params": [model[0].bias]}]
    groups.append({"params": [nn.Parameter(torch.zeros(2, 5))]})
    with pytest.raises(TrainingError) as error:
        check_groups(model, groups)
    text = str(error.value)
    assert "no optimizer group: 1.weight, 1.bias, 3.bias" in text
    assert "more than once in the optimizer groups: 0.bias" in text
    assert "frozen: 0.weight" in text
    assert "not of the model: a tensor of shape (2, 5)" in text
    assert len(error.value.problems) == 4


def test_a_generator_of_parameters_is_refused_before_it_is_used_up():
    with pytest.raises(TrainingError, match="not a list"):
        check_groups(tiny_model(), [{"params": tiny_model().parameters()}])


def rates(schedule: Any, total_steps: int, warmup: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = make_scheduler(optimizer, schedule, total_steps, warmup)
    found = []
    for _ in range(total_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.5, 0.99])
@pytest.mark.parametrize("total_steps", [1, 2, 7, 100])
def test_the_rate_rises_to_the_peak_then_never_rises_and_is_never_zero(schedule, warmup, total_steps):
    found = rates(schedule, total_steps, warmup)
    peak = found.index(2.0)
    assert peak == min(round(warmup * total_steps), total_steps - 1)
    assert all(a < b for a, b in pairwise(found[: peak + 1]))
    assert all(a >= b for a, b in pairwise(found[peak:]))
    assert min(found) > 0


def test_linear_and_cosine_end_near_zero_and_constant_does_not():
    ends = {schedule: rates(schedule, 100, 0.06)[-1] / 2.0 for schedule in ("linear", "cosine", "constant")}
    assert 0 < ends["cosine"] < ends["linear"] < 0.02
    assert ends["constant"] == 1.0


def test_linear_and_cosine_are_half_way_down_in_the_middle():
    for schedule in ("linear", "cosine"):
        assert rates(schedule, 100, 0.0)[50] == pytest.approx(1.0)


def test_each_group_keeps_its_own_peak():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    optimizer = torch.optim.SGD(groups)
    scheduler = make_scheduler(optimizer, "linear", 10, 0.0)
    for _ in range(5):
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == scheduler.get_last_lr() == [0.5, 0.05]
