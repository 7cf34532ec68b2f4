"""Edits of hidden states behind the blocks of a transformer, and the positions at which they are made.

An edit is a child module of its block. Two kinds of forward hooks use it: one on the model around the blocks, which
is told which tokens are padding and how much stands in the cache, and one on each block. All are methods of modules
inside the model, so that a copy of it has hooks of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adaptkit.errors import ModelError, RecipeError

CHILD = "loreft"


class Edit(nn.Module):
    """``h + Rᵀ(Wh + b - Rh)``, equation 2 of the paper; fp32 whatever the base's precision.

    Args:
        hidden: Width of the hidden states.
        r: Rank.
        device: Of the block.

    Attributes:
        basis: ``(r, hidden)``; R is its rows, made orthonormal.
        source: W, ``(r, hidden)``.
        bias: b, ``(r,)``.
    """

    def __init__(self, hidden: int, r: int, device: torch.device) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.eye(r, hidden, device=device))
        self.source = nn.Parameter(torch.eye(r, hidden, device=device))
        self.bias = nn.Parameter(torch.zeros(r, device=device))

    def rotation(self) -> Tensor:
        """Returns R, ``(r, hidden)``: what Gram-Schmidt makes of the basis, by a Cholesky factor of ``r × r``."""
        lower = torch.linalg.cholesky(self.basis @ self.basis.T)
        rows: Tensor = torch.linalg.solve_triangular(lower, self.basis, upper=False)
        return rows

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns edited hidden states ``(positions, hidden)``."""
        with torch.autocast(hidden.device.type, enabled=False):
            rotation = self.rotation()
            change = hidden.float() @ (self.source - rotation).T + self.bias
            return hidden + (change @ rotation).to(hidden.dtype)


class Positions(nn.Module):
    """Where a forward pass is edited: the first and the last positions of each row.

    Args:
        first: Positions from the beginning of a row, its padding left out.
        last: Positions from its end. Needs whole rows: no cache, no packing.

    Attributes:
        enabled: Whether anything is edited.
    """

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.enabled = True
        self._places: Tensor | None = None

    def find(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Is the hook before the model around the blocks: takes down where to edit, bool ``(batch, seq)``."""
        given = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        tokens = given["input_ids"] if given.get("inputs_embeds") is None else given["inputs_embeds"]
        number, real = _numbers(given, *tokens.shape[:2])
        places = number < self.first
        if self.last:
            places |= number >= number[:, -1:] + 1 - self.last
        self._places = (places & real).to(tokens.device)

    def edit(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Is the hook behind a block: edits its hidden state ``(batch, seq, hidden)``."""
        if not self.enabled:
            return None
        assert self._places is not None, "a block was called outside of its model"
        hidden = output[0] if isinstance(output, tuple) else output
        edited = hidden.index_put((self._places,), block.get_submodule(CHILD)(hidden[self._places]))
        return (edited, *output[1:]) if isinstance(output, tuple) else edited


def _numbers(given: dict[str, Any], batch: int, seq: int) -> tuple[Tensor, Tensor]:
    """Returns the number of each token in its row, and whether it is one, ``(batch, seq)`` both.

    Padding has the number of the token before it, so that the last number is always that of a row's last token.
    """
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:  # it covers the cache too
        return (mask.long().cumsum(1) - 1)[:, -seq:], mask[:, -seq:].bool()
    numbers = given.get("position_ids")
    if numbers is None:
        cache = given.get("past_key_values")
        before = 0 if cache is None else int(cache.get_seq_length())
        numbers = torch.arange(before, before + seq).unsqueeze(0)
    return numbers.expand(batch, seq), torch.ones(batch, seq, dtype=torch.bool, device=numbers.device)


def attach(model: nn.Module, r: int, layers: str | list[int], first: int, last: int) -> None:
    """Puts edits that change nothing behind blocks of the first stack. Works on the meta device.

    Raises:
        RecipeError: There is no such block, or the hidden states have fewer dimensions than ``r``.
        ModelError: The model has no stack of blocks that can be edited.
    """
    owner, blocks = _first_stack(model)
    hidden = owner.config.hidden_size
    chosen = range(len(blocks)) if isinstance(layers, str) else sorted(set(layers))
    if max(chosen) >= len(blocks):
        raise RecipeError(
            f"strategy.layers names block {max(chosen)}, but there are {len(blocks)}",
            where="strategy.layers",
            allowed=f"all, or numbers from 0 to {len(blocks) - 1}",
            fix="leave strategy.layers out, or choose among these",
        )
    if r > hidden:
        raise RecipeError(
            f"strategy.r is {r}, but the hidden states have {hidden} dimensions",
            where="strategy.r",
            allowed=f"1 to {hidden}",
            fix="lower it; the paper uses 1 to 8",
        )
    positions = Positions(first, last)
    owner.add_module(CHILD, positions)
    owner.register_forward_pre_hook(positions.find, with_kwargs=True)
    for block in (blocks[index] for index in chosen):
        block.add_module(CHILD, Edit(hidden, r, next(block.parameters()).device))
        block.register_forward_hook(positions.edit)


def _first_stack(model: nn.Module) -> tuple[PreTrainedModel, nn.ModuleList]:
    """Returns the first stack of blocks, an encoder-decoder's encoder, and the innermost model around it.

    Raises:
        ModelError: There is none.
    """
    owners: dict[str, PreTrainedModel] = {}
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            owners[name] = module
        if owners and isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1:
            around = max((outer for outer in owners if f"{name}.".startswith(f"{outer}.") or not outer), key=len)
            return owners[around], module
    raise ModelError(
        f"{type(model).__name__} has no stack of transformer blocks of which hidden states could be edited",
        fix="choose another strategy for this model: lora, full, linear-probe",
    )


def edits(model: nn.Module) -> dict[str, Edit]:
    """Returns the edits of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Edit)}


def draw(model: nn.Module, seed: int) -> None:
    """Draws an R for each edit, the same on every device; W becomes R and b zero, so that nothing is edited."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for edit in edits(model).values():
            drawn = torch.randn(edit.basis.T.shape, generator=generator)
            edit.basis.copy_(torch.linalg.qr(drawn).Q.T)
            edit.source.copy_(edit.rotation())
            edit.bias.zero_()


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes what its base does."""
    found = [module for module in model.modules() if isinstance(module, Positions) and module.enabled]
    for positions in found:
        positions.enabled = False
    try:
        yield
    finally:
        for positions in found:
            positions.enabled = True
