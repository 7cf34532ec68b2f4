"""adaptkit's own checks of a strategy, on tiny models of four architectures."""

from __future__ import annotations

from collections.abc import Callable

from adaptkit_lora_xs import LoraXS
from torch import nn
from transformers.pytorch_utils import Conv1D

from adaptkit import AdaptContext
from adaptkit.testing import parametrize_with_checks

R = 16  # the default


def layers_times_r_squared(model: nn.Module, context: AdaptContext) -> int:
    """Returns the paper's count, r² a layer, and what is new: the head, and BERT's pooler in front of it."""
    new = {name.rpartition(".")[0] for name in context.new_parameters}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    layers = linear - new - {"lm_head"}
    return len(layers) * R**2 + sum(model.get_parameter(name).numel() for name in context.new_parameters)


@parametrize_with_checks([LoraXS], trainable_parameters=layers_times_r_squared)
def test_keeps_the_contract(check: Callable[[], None]) -> None:
    check()
