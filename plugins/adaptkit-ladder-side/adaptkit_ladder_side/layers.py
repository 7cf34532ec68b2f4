"""The side network, and how it is hung beside the blocks of a transformer.

Forward hooks on the blocks hand their hidden states over, cut off from whatever they were computed from. So the base
keeps no activation for a backward pass, and the loss reaches the side network through the head alone. A hook is a
method of the side network: a copy of the model has hooks of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from adaptkit import block_stacks
from adaptkit.errors import ModelError, RecipeError

CHILD = "ladder_side"
TEMPERATURE = 0.1  # of the gates, as in the paper


class Rung(nn.Module):
    """One block of the side network: a gated shortcut from the base, and a gated MLP, position by position.

    ``s ← μ D(h) + (1 − μ) s`` with ``μ = sigmoid(alpha / 0.1)``, then ``s ← s + MLP(s)``.

    Args:
        hidden: Width of the base's hidden states.
        width: Of the side network.
        device: Of the base's block.
    """

    def __init__(self, hidden: int, width: int, device: torch.device) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1, device=device))
        self.shortcut = nn.Linear(hidden, width, bias=False, device=device)
        self.gate = nn.Linear(width, 2 * width, bias=False, device=device)
        self.value = nn.Linear(width, 2 * width, bias=False, device=device)
        self.out = nn.Linear(2 * width, width, bias=False, device=device)

    def forward(self, side: Tensor, hidden: Tensor) -> Tensor:
        """Returns the next side state ``(batch, seq, width)`` for a hidden state ``(batch, seq, hidden)``."""
        mu = torch.sigmoid(self.alpha / TEMPERATURE)
        side = mu * self.shortcut(unit_scale(hidden)) + (1 - mu) * side
        inner = unit_scale(side)
        mixed: Tensor = side + self.out(silu(self.gate(inner)) * self.value(inner))
        return mixed


class Ladder(nn.Module):
    """A side network beside one stack of blocks.

    Args:
        blocks: Of the base; each is called once in a forward pass, in this order.
        hidden: Width of their hidden states.
        width: Of the side network.

    Attributes:
        entry: Reads what enters the first block, the embeddings.
        rungs: One for each block, which reads what leaves it.
        up: Adds the last side state to what leaves the last block.
        enabled: Whether it is added.
    """

    def __init__(self, blocks: nn.ModuleList, hidden: int, width: int) -> None:
        super().__init__()
        device = next(blocks.parameters()).device
        self.entry = nn.Linear(hidden, width, bias=False, device=device)
        self.rungs = nn.ModuleList(Rung(hidden, width, device) for _ in blocks)
        self.up = nn.Linear(width, hidden, bias=False, device=device)
        self.enabled = True
        self._side: Tensor | None = None
        blocks[0].register_forward_pre_hook(self._enter, with_kwargs=True)
        for index, block in enumerate(blocks):
            block.register_forward_hook(partial(self._climb, index))

    def draw(self, seed: int) -> None:
        """Gives every matrix normal values of variance 1/in, the same on every device; ``up`` becomes zero."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in (module for module in self.modules() if isinstance(module, nn.Linear)):
                drawn = torch.randn(layer.weight.shape, generator=generator)
                layer.weight.copy_(drawn / layer.in_features**0.5)
            self.up.weight.zero_()

    def _enter(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Begins with the embeddings. They reach new tokens' rows from here; the blocks get them cut off."""
        args, kwargs, hidden = cut_off(args, kwargs)
        self._side = self.entry(unit_scale(hidden)) if self.enabled else None
        return args, kwargs

    def _climb(self, index: int, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Takes the hidden state that leaves a block; the last one goes on with the side state added."""
        if not self.enabled:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        assert self._side is not None, "a block was called before the first one"
        self._side = self.rungs[index](self._side, hidden.detach())
        if index + 1 < len(self.rungs):
            return None
        added = hidden.detach() + self.up(unit_scale(self._side)).to(hidden.dtype)
        self._side = None
        return (added, *output[1:]) if isinstance(output, tuple) else added


def unit_scale(states: Tensor) -> Tensor:
    """Returns states ``(…, width)`` in float32, each position scaled to a root mean square of 1."""
    return rms_norm(states.float(), states.shape[-1:])


def cut_off(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
    """Returns the arguments of a block with its hidden state detached, and that state as it was."""
    if args:
        return (args[0].detach(), *args[1:]), kwargs, args[0]
    hidden = kwargs["hidden_states"]
    return args, {**kwargs, "hidden_states": hidden.detach()}, hidden


def _cut(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs, _ = cut_off(args, kwargs)
    return args, kwargs


def attach(model: nn.Module, reduction_factor: int) -> None:
    """Hangs a side network beside the last stack of blocks, and cuts the others off. Works on the meta device.

    Raises:
        ModelError: The model has no stack of blocks, or one that runs more than once; or it does not tell how wide
            its hidden states are.
        RecipeError: ``reduction_factor`` is larger than that width.
    """
    *others, blocks = [blocks for _, blocks in block_stacks(model)]
    config: Any = getattr(model, "config", None)
    hidden = getattr(config, "hidden_size", None)
    if not isinstance(hidden, int):
        raise _refusal(model, "does not tell the width of its hidden states")
    if not others and getattr(config, "num_hidden_layers", len(blocks)) != len(blocks):
        raise _refusal(model, "runs its blocks more than once")  # ALBERT shares one among all layers
    if reduction_factor > hidden:
        raise RecipeError(
            f"strategy.reduction_factor is {reduction_factor}, but the hidden states are {hidden} wide",
            where="strategy.reduction_factor",
            allowed=f"1 to {hidden}",
            fix="lower it; the paper uses 8",
        )
    for other in others:
        other[0].register_forward_pre_hook(_cut, with_kwargs=True)
    model.add_module(CHILD, Ladder(blocks, hidden, hidden // reduction_factor))


def _refusal(model: nn.Module, why: str) -> ModelError:
    return ModelError(
        f"a side network cannot stand beside {type(model).__name__}: it {why}",
        fix="choose another strategy for this model: lora, full, linear-probe",
    )


def ladder(model: nn.Module) -> Ladder:
    """Returns the side network of an adapted model."""
    child = model.get_submodule(CHILD)
    assert isinstance(child, Ladder)
    return child


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes what its base does."""
    side = ladder(model)
    before, side.enabled = side.enabled, False
    try:
        yield
    finally:
        side.enabled = before
