"""The parts of a transformer that strategies name: its linear layers and its stack of blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from adaptkit.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


def linear_layers(model: nn.Module, *, without: Iterable[str] = ()) -> list[str]:
    """Returns the names of the linear layers of the base: attention, MLP, and a pooler where there is one.

    Args:
        model: With its head.
        without: Names of modules that are left out, with all that is in them (the head).
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = getattr(model, "get_output_embeddings", lambda: None)()
    skipped = tuple(without)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)  # bitsandbytes' layers are nn.Linear too
        and module is not output
        and not any(name == skip or name.startswith(skip + ".") for skip in skipped)
    ]


def norm_layers(model: nn.Module, *, without: Iterable[str] = ()) -> list[str]:
    """Returns the names of the normalisation layers: those whose class is called one and that have a weight.

    Args:
        model: With its head.
        without: Names of modules that are left out, with all that is in them (the head).
    """
    skipped = tuple(without)
    return [
        name
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        and getattr(module, "weight", None) is not None
        and not any(name == skip or name.startswith(skip + ".") for skip in skipped)
    ]


def has_transposed_layers(model: nn.Module) -> bool:
    """Whether linear layers hold their weight as ``(in, out)``: GPT-2's `Conv1D`."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def block_stacks(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Returns the stacks of transformer blocks, by name: one, or an encoder's and a decoder's.

    A stack is an outermost ModuleList of two or more blocks of one class.

    Raises:
        ModelError: The model has none.
    """
    from torch import nn

    stacks: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer, _ in stacks)
        if isinstance(module, nn.ModuleList) and not inside and len({type(block) for block in module}) == 1:
            stacks.append((name, module))
    if not stacks:
        raise ModelError(
            f"{type(model).__name__} has no stack of transformer blocks",
            fix="choose a strategy that does not count layers: lora, full, linear-probe",
        )
    return stacks


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Returns how many parameters of the adapted model train, and how many it has.

    Packed 4-bit weights count as the weights that they stand for.
    """
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return trainable, sum(_logical_size(parameter) for parameter in model.parameters())


def _logical_size(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)  # bitsandbytes' Params4bit
    return int(state.shape.numel()) if state is not None else parameter.numel()
