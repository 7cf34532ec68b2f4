"""Whether rows are blind to each other in a model: found by trying, for no list of architectures would be complete."""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adaptkit.errors import ModelError
from adaptkit.task import Features
from adaptkit.training.evaluation import inference
from adaptkit.training.gradient import move

if TYPE_CHECKING:
    from adaptkit.models.precision import Numerics
    from adaptkit.task import Task

TOKENS = 16
CANDIDATES = 100  # rows, of which the one with most different tokens is taken
# Shares of what a text in front of a row changes where it may be read. What another row in front changed was nothing
# in tiny models of 15 architectures that keep rows apart, in bf16 as in fp32, and at least 1e-3 in those of 20 others.
LEAK = 2e-4
# What bf16 makes of the same row at another place: up to 4e-2 in a model of 30 layers.
ROUNDING = 0.2
# Share of the loss. Tiny models of 50 architectures were off by 2e-6 at most, FNet, ConvBERT and YOSO by 5e-4 or more.
PADDING, PADDING_BF16 = 1e-4, 5e-2
ADVICE = {
    "where": "training.packing",
    "allowed": "models that take masks and positions from position_ids: Llama, Qwen, Gemma, GPT-2 …",
    "fix": "set training.packing to false",
}


def check_packing(model: nn.Module, features: Sequence[Features], length: int, numerics: Numerics) -> None:
    """Makes sure that a row gives the same behind another row, packed as `adaptkit.data.packing` does, as alone.

    Recurrent layers carry a state from row to row, and some architectures make their masks or positions without
    looking at ``position_ids``. Either would learn from mixed rows in silence.

    Args:
        model: The adapted model; it is left as it was.
        features: Rows, with ``input_ids``.
        length: Tokens that the model takes.
        numerics: How it computes.

    Raises:
        ModelError: It does not keep packed rows apart.
    """
    if not _takes_positions(model):
        raise ModelError(f"{type(model).__name__} takes no position_ids, by which packed rows are told apart", **ADVICE)
    size = max(1, min(TOKENS, length // 2))
    row = max((feature["input_ids"][:size] for feature in features[:CANDIDATES]), key=lambda ids: len(set(ids)))
    if len(set(row)) == 1:
        return  # behind its like, a row of one token says nothing
    first, second = [*range(len(row))], [*range(len(row), 2 * len(row))]
    with inference(model, numerics):
        alone = _logits(model, row, first, numerics)
        packed = _logits(model, [*reversed(row), *row], first + first, numerics)[len(row) :]
        behind_another = _logits(model, [row[-1]] * len(row) + row, first + first, numerics)[len(row) :]
        continued = _logits(model, [*reversed(row), *row], first + second, numerics)[len(row) :]
    scale = _distance(continued, alone)
    # LLM.int8() splits off columns by all tokens of a batch together, whatever their rows.
    leak = ROUNDING if numerics.precision == "int8" else LEAK
    if _distance(packed, behind_another) > leak * scale or _distance(packed, alone) > ROUNDING * scale:
        raise ModelError(
            f"{type(model).__name__} does not keep rows apart that share a sequence: each would be read after another",
            **ADVICE,
        )


def reads_padding(
    model: nn.Module, task: Task[Any], features: Sequence[Features], tokenizer: Any, numerics: Numerics
) -> bool:
    """Returns whether the losses of two rows of different length add up to another loss than that of both together.

    FNet, for one, mixes all positions of a batch and knows no mask, so that what it makes of a row depends on the
    longest row beside it.
    """
    lengths = [task.length(feature) for feature in features]
    rows = [features[lengths.index(length)] for length in (min(lengths), max(lengths))]
    rows = [task.vary(row, random.Random(0)) for row in rows]

    def loss(*some: Features) -> float:
        return float(task.loss(model, move(task.collate(some, tokenizer), numerics.device)).total)

    with inference(model, numerics):
        apart, together = loss(rows[0]) + loss(rows[1]), loss(*rows)
    exact = not numerics.bf16 and numerics.precision != "int8"
    return abs(together - apart) > (PADDING if exact else PADDING_BF16) * abs(apart)


def _takes_positions(model: nn.Module) -> bool:
    parameters = inspect.signature(model.forward).parameters
    return "position_ids" in parameters or any(each.kind == each.VAR_KEYWORD for each in parameters.values())


def _logits(model: nn.Module, tokens: Sequence[int], positions: Sequence[int], numerics: Numerics) -> Tensor:
    """Returns float32 logits ``(seq, vocabulary)`` of one sequence."""
    inputs = {"input_ids": torch.tensor([tokens]), "position_ids": torch.tensor([positions])}
    logits: Tensor = model(**move(inputs, numerics.device), use_cache=False).logits
    return logits[0].float()


def _distance(one: Tensor, other: Tensor) -> float:
    """Returns how far the logits are apart where they are farthest."""
    return float((one - other).norm(dim=-1).max())
