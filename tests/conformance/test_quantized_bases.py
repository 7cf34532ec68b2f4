"""A strategy that says that it works on a quantised base trains there as on the numbers that the base stands for.

PEFT refuses some methods on such a base and lets others fail in silence: their own numbers, cast to the integers of the
base, are 0.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from torch import Tensor, nn

from adaptkit.registry import load_registry
from adaptkit.testing.trial import Trial
from benchmarks.cells import Cell, Trials, prepare_trial

TASKS = {"encoder": "masked-lm", "decoder": "causal-lm"}
STRATEGIES = {name: entry.value.capabilities for name, entry in load_registry().strategies.items()}
CASES = [
    (name, family)
    for name, capabilities in STRATEGIES.items()
    if capabilities.quantized_base and capabilities.tasks is None and name != "qlora"  # lora with other defaults
    for family in TASKS
    if family in capabilities.families
]


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(tmp_path_factory.mktemp("quantized"))


def stir(one: Trial, other: Trial) -> None:
    """Moves all that trains away from its first values, at which it may not matter, and makes it the same in both."""
    generator = torch.Generator().manual_seed(0)
    others = other.job.trainable()
    with torch.no_grad():
        for name, parameter in one.job.trainable().items():
            opened = parameter.numel() == 1  # a gate
            parameter.add_(1.0 if opened else 0.02 * torch.randn(parameter.shape, generator=generator))
            others[name].copy_(parameter)


def linear_weights(model: nn.Module) -> dict[str, nn.Linear]:
    """Returns the base's own linear layers, by the name that they have without an adapter."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {
        name.replace(".base_layer", ""): module for name, module in layers.items() if not hasattr(module, "base_layer")
    }


def copy_base(source: nn.Module, target: nn.Module) -> None:
    """Gives a whole model the numbers that a base in NF4 stands for, and whatever else does not train."""
    frozen = {name: parameter for name, parameter in source.named_parameters() if not parameter.requires_grad}
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            if name in frozen and frozen[name].shape == parameter.shape:
                parameter.copy_(frozen[name])
        layers = linear_weights(target)
        for name, layer in linear_weights(source).items():
            if isinstance(layer, bnb.nn.Linear4bit):
                layers[name].weight.copy_(dequantize_4bit(layer.weight.data, layer.weight.quant_state))


def gradient(trial: Trial) -> Tensor:
    """Returns the gradient of the first batch in one vector, nothing being drawn."""
    model: Any = trial.job.model.eval()
    with trial.adapted.numerics.autocast():
        loss = sum(trial.task.loss(model, batch).total for batch in trial.job.batches.at(0))
    loss.backward()  # type: ignore[union-attr]
    return torch.cat([parameter.grad.flatten() for parameter in trial.job.trainable().values()])


def assert_parallel(one: Tensor, other: Tensor, least: float) -> None:
    assert float(other.norm()) > 0
    assert float(torch.cosine_similarity(one, other, dim=0)) > least
    assert float(one.norm() / other.norm()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize(("strategy", "family"), CASES)
def test_on_nf4_it_learns_what_it_learns_on_the_numbers_behind(
    trials: Trials, strategy: str, family: Any, compute: str
) -> None:
    quantized = trial(trials, strategy, family, "nf4", compute)
    plain = trial(trials, strategy, family, compute, compute)
    copy_base(quantized.job.model, plain.job.model)
    stir(quantized, plain)
    assert_parallel(gradient(quantized), gradient(plain), least=0.99)


@pytest.mark.parametrize(("strategy", "family"), CASES)
def test_on_int8_it_learns_about_what_it_learns_on_fp32(trials: Trials, strategy: str, family: Any) -> None:
    quantized, plain = (trial(trials, strategy, family, precision, "fp32") for precision in ("int8", "fp32"))
    stir(quantized, plain)
    assert_parallel(gradient(quantized), gradient(plain), least=0.95)


def trial(trials: Trials, strategy: str, family: Any, precision: Any, compute: str) -> Trial:
    cell = Cell(strategy, family, TASKS[family], precision)
    return prepare_trial(trials.recipe(cell, compute=compute), trials.registry)
