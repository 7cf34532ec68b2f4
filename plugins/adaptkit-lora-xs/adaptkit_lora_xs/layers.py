"""What LoRA-XS puts beside a linear layer, and the linear layers of a model.

An update is a child module of its layer and a forward hook on it. So no layer of the base is replaced or renamed, and
what the base reads of its layers (dtypes, weights) it finds where it was. A hook is a method of the child: a copy of
the model has hooks of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from adaptkit import linear_layers
from adaptkit.errors import ModelError, Problem

CHILD = "lora_xs"


class Update(nn.Module):
    """``scaling A R B``, added to the weight of a linear layer; fp32 whatever the base's precision.

    Args:
        in_features: Of the layer.
        out_features: Of the layer.
        r: Directions at the most; a layer has no more than its smaller side.
        scaling: Of the update.
        device: Of the layer.

    Attributes:
        left: A, ``(out, r)``: the first left singular vectors of the weight, times its singular values. Frozen.
        core: R, ``(r, r)``. Trains.
        right: B, ``(r, in)``: the first right singular vectors. Frozen.
        enabled: Whether it is added.
        hook: By which it is added; `attach` sets it.
    """

    hook: RemovableHandle
    left: Tensor
    right: Tensor

    def __init__(self, in_features: int, out_features: int, r: int, scaling: float, device: torch.device) -> None:
        super().__init__()
        r = min(r, in_features, out_features)
        self.register_buffer("left", torch.zeros(out_features, r, device=device))
        self.core = nn.Parameter(torch.zeros(r, r, device=device))
        self.register_buffer("right", torch.zeros(r, in_features, device=device))
        self.scaling = scaling
        self.enabled = True

    def add(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Is the forward hook of the layer: adds to its output ``(…, out)`` what the update makes of ``(…, in)``."""
        if not self.enabled:
            return None
        low = linear(linear(inputs[0].to(self.core.dtype), self.right), self.scaling * self.core)
        return output + linear(low, self.left).to(output.dtype)

    def delta(self) -> Tensor:
        """Returns what is added to the weight, ``(out, in)``."""
        return self.scaling * (self.left @ self.core @ self.right)


def target_layers(model: nn.Module, wanted: str | list[str], *, without: Iterable[str]) -> list[str]:
    """Returns the names of linear layers, all or those with certain last parts.

    Args:
        model: With its head.
        wanted: ``all-linear``, or last parts of names.
        without: Modules that are left out, with all that is in them. The output layer of a language model always is.

    Raises:
        ModelError: A part matches no layer; all such parts at once.
    """
    names = linear_layers(model, without=without)
    if isinstance(wanted, str):
        return names
    matching = {part: {name for name in names if f".{name}".endswith(f".{part}")} for part in wanted}
    allowed = "all-linear, or " + ", ".join(sorted({name.rpartition(".")[2] for name in names}))
    problems = [
        Problem(f"no linear layer is called {part!r}", "strategy.target_modules", allowed, "name one of these")
        for part, found in matching.items()
        if not found
    ]
    if problems:
        raise ModelError(problems)
    chosen = set().union(*matching.values())
    return [name for name in names if name in chosen]


def attach(model: nn.Module, names: Iterable[str], r: int, scaling: float) -> None:
    """Gives layers an update of zeros each. Works on the meta device."""
    for name in names:
        layer: Any = model.get_submodule(name)
        sides = (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
        update = Update(*sides, r, scaling, layer.weight.device)
        layer.add_module(CHILD, update)
        update.hook = layer.register_forward_hook(update.add)


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the layers that have an update, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(getattr(module, CHILD, None), Update)}


def _update(layer: nn.Module) -> Update:
    update = layer.get_submodule(CHILD)
    assert isinstance(update, Update)
    return update


def added_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Returns A and B of every layer, by name."""
    return {
        f"{name}.{CHILD}.{buffer}": tensor
        for name, layer in adapted_layers(model).items()
        for buffer, tensor in _update(layer).named_buffers()
    }


def set_directions(layer: nn.Module) -> None:
    """Sets A and B from the truncated singular value decomposition of the layer's weight."""
    update = _update(layer)
    r = len(update.core)
    vectors, values, covectors = torch.linalg.svd(whole_weight(layer), full_matrices=False)
    update.left.copy_(vectors[:, :r] * values[:r])
    update.right.copy_(covectors[:r])


def whole_weight(layer: Any) -> Tensor:
    """Returns the weight that a linear layer computes with, float32 ``(out, in)``."""
    weight: Tensor = layer.weight.detach()
    if _is_4bit(layer):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight, layer.weight.quant_state).float()  # type: ignore[no-any-return]
    if _is_8bit(layer):
        from bitsandbytes.functional import int8_vectorwise_dequant

        # The scales move from the weight to the layer's state in its first forward pass.
        scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
        return int8_vectorwise_dequant(weight, scales).float()  # type: ignore[no-any-return]
    return (weight.T if isinstance(layer, Conv1D) else weight).float()


def _is_4bit(layer: Any) -> bool:
    return getattr(layer.weight, "quant_state", None) is not None


def _is_8bit(layer: Any) -> bool:
    return bool(layer.weight.dtype == torch.int8)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the layers compute what the base's do."""
    updates = [update for update in map(_update, adapted_layers(model).values()) if update.enabled]
    for update in updates:
        update.enabled = False
    try:
        yield
    finally:
        for update in updates:
            update.enabled = True


def merge(model: nn.Module) -> nn.Module:
    """Adds every update to its weight and takes it out of the model.

    Raises:
        ModelError: A weight is quantised; the model is then as it was.
    """
    layers: dict[str, Any] = dict(adapted_layers(model))
    for name, layer in layers.items():
        if _is_4bit(layer) or _is_8bit(layer):
            raise ModelError(
                "lora-xs cannot be merged into quantised weights: the update would be rounded away",
                where=name,
                fix="build the model with model.precision bf16 or fp32, and merge there",
            )
    with torch.no_grad():
        for layer in layers.values():
            update = _update(layer)
            delta = update.delta().to(layer.weight.dtype)
            layer.weight += delta.T if isinstance(layer, Conv1D) else delta
            update.hook.remove()
            delattr(layer, CHILD)
    return model
