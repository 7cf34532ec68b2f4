"""Stacks of equal blocks: four of them are run, and one in the middle stands for all that are like it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from adaptkit.errors import ModelError
from adaptkit.memory.tracker import Interval, Parts
from adaptkit.models.layers import block_stacks

SHOWN = 4  # the first, two from the middle, the last
# The one that stands for others, in the order in which they run: the second of the two. Something may begin with the
# first (a gradient that all blocks add to).
FORWARD, BACKWARD = "forward", "backward"
MIDDLE = {FORWARD: 2, BACKWARD: 1}


@dataclass(frozen=True)
class Stack:
    """A stack of which four blocks are left.

    Attributes:
        blocks: The four.
        depth: How many there were.
    """

    blocks: Sequence[nn.Module]
    depth: int

    @property
    def middle(self) -> nn.Module:
        """The block that stands for others."""
        return self.blocks[MIDDLE[FORWARD]]

    @property
    def missing(self) -> int:
        """How many blocks were taken out."""
        return self.depth - SHOWN


def shorten(model: nn.Module) -> list[Stack]:
    """Leaves four blocks of each stack of a model, in place, where those in between are alike.

    The first and the last may be others (T5's first block holds the positions).

    Returns:
        The stacks; nothing where the model stays whole.
    """
    try:
        stacks = block_stacks(model)
    except ModelError:
        return []
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    depths = {len(stack) for _, stack in stacks}
    others = [one for one in lists if len(one) in depths and not any(one is stack for _, stack in stacks)]
    if others or not all(len(stack) > SHOWN and _alike(stack[1:-1]) for _, stack in stacks):
        return []
    shortened = []
    for _, stack in stacks:
        depth = len(stack)
        del stack[SHOWN - 1 : depth - 1]
        shortened.append(Stack(list(stack), depth))
    return shortened


def _alike(blocks: Iterable[nn.Module]) -> bool:
    return len({_signature(block) for block in blocks}) == 1


def _signature(block: nn.Module) -> tuple[Any, ...]:
    """Returns what memory depends on: tensors, what trains, classes, and settings but for the index of a layer."""
    tensors = [
        (name, tensor.shape, tensor.dtype, tensor.requires_grad)
        for name, tensor in (*block.named_parameters(), *block.named_buffers())
    ]
    modules = [(name, type(module).__qualname__, _settings(module)) for name, module in block.named_modules()]
    return tuple(tensors), tuple(modules)


def _settings(module: nn.Module) -> tuple[Any, ...]:
    return tuple(
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and "idx" not in name and "index" not in name
    )


def unroll(intervals: Sequence[Interval], stacks: Sequence[Stack], more: Parts) -> Parts:
    """Returns the bytes by part at the peak of a whole model.

    Args:
        intervals: Of the model with shortened stacks; one of a block is called ``(FORWARD or BACKWARD, stack, block)``.
        stacks: As `shorten` gave them.
        more: What the whole model holds, by part, beyond the shortened one, from the beginning.
    """
    highest: Parts = Parts()
    for interval in intervals:
        times = 1
        if stacks and len(interval.name) == 3 and interval.name[2] == MIDDLE[interval.name[0]]:
            times += stacks[interval.name[1]].missing
        grows = {part: interval.end[part] - interval.start[part] for part in {*interval.end, *interval.start}}
        for done in (0, times - 1):
            highest = max(
                highest, _sum(interval.peak, more, _times(grows, done)), key=lambda parts: sum(parts.values())
            )
        more = _sum(more, _times(grows, times - 1), *_freed_behind(interval, stacks))
    return highest


def _freed_behind(interval: Interval, stacks: Sequence[Stack]) -> Iterator[Parts]:
    """Yields what blocks that were taken out made and lose where no block runs, as bytes less.

    Copies of weights in another precision, which autocast keeps to the end of the forward pass, are of that kind. What
    a block's own backward pass frees shows in how that grows.
    """
    for (made_in, part), size in interval.freed.items() if len(interval.name) != 3 else ():
        if len(made_in) == 3 and made_in[0] == FORWARD and made_in[2] == MIDDLE[FORWARD]:
            yield Parts({part: -size * stacks[made_in[1]].missing})


def _times(parts: dict[str, int] | Parts, factor: int) -> Parts:
    return Parts({part: factor * size for part, size in parts.items()})


def _sum(*several: Parts) -> Parts:
    total = Parts()
    for parts in several:
        total.update(parts)  # Counter's addition would drop what is negative
    return total
