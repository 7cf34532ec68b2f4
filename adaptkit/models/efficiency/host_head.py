"""An output layer whose frozen weight waits in the host's memory, and is on the GPU only while it makes logits.

Of a vocabulary of 128k it takes 1 to 2 GiB, for a few milliseconds of a step. Most of it comes over the bus while the
blocks still run; the last part comes when they are done, into the memory that they have left.
"""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adaptkit.models.values import has_no_values

# Of the rows that come before they are needed: a block's own pass takes as much memory as about a quarter of the
# weight and the loss of a chunk of labels (Llama 3.1 8B at 4,096 tokens), so that neither of the two is the peak.
EARLY = 0.75


class HostLinear(nn.Linear):
    """A linear layer that copies its weight to the device for as long as somebody holds a visit.

    `nn.Linear` becomes one by its class alone: its tensors and their names stay.
    """

    _page_locked: Tensor | None = None
    _visit: weakref.ref[Visit] | None = None

    @property
    def source(self) -> Tensor:
        """The weight where it waits, ``(out_features, in_features)``."""
        return self.weight if self._page_locked is None else self._page_locked

    def visit(self) -> Visit:
        """Returns the visit that somebody holds, or begins one."""
        current = self._visit() if self._visit is not None else None
        if current is None:
            current = Visit(self)
            self._visit = weakref.ref(current)
        return current

    def forward(self, input: Tensor) -> Tensor:
        """Returns what `nn.Linear` does, without a gradient of the weight."""
        kind, dtype = input.device.type, self.weight.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        parts = [part.to(dtype) for part in self.visit().weight()]
        product: Tensor = _Product.apply(input.to(dtype), *parts)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product.add_(self.bias)


def wait_in_host(layer: nn.Linear, page_locked: Tensor | None = None) -> None:
    """Makes a layer one whose weight visits the GPU, in place.

    Args:
        layer: Exactly an `nn.Linear`, its weight frozen.
        page_locked: Its weight in the host's memory; None: it is where it is (on a CPU, or in a plan).
    """
    layer.__class__ = HostLinear
    layer._page_locked = page_locked  # type: ignore[assignment]


def visit_of(model: nn.Module) -> Visit | None:
    """Begins a visit of a model's output layer, which ends when nobody holds it; None: the layer is always there."""
    layer = getattr(model, "get_output_embeddings", lambda: None)()
    return layer.visit() if isinstance(layer, HostLinear) else None


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Returns the stream of a device on which weights come."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """``states @ weight.T`` for a weight in several parts, ``(rows, in)`` each; what comes out is one tensor.

    And no view of one: who overwrites logits by their gradient would pay for the backward pass of the view with as much
    memory again.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        sizes = [len(part) for part in parts]
        product = states.new_empty(*states.shape[:-1], sum(sizes))
        places = torch.split(product.flatten(0, -2), sizes, dim=1)
        for part, place in zip(parts, places, strict=True):
            torch.mm(states.flatten(0, -2), part.t(), out=place)
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.saved_tensors
        first, *others = torch.split(gradients[0].flatten(0, -2), [len(part) for part in parts], dim=1)
        gradient = first @ parts[0]
        for more, part in zip(others, parts[1:], strict=True):
            gradient.addmm_(more, part)
        return gradient.view(*gradients[0].shape[:-1], parts[0].shape[1]), *(None for _ in parts)


class Visit:
    """The weight of a layer on its device, as long as this object lives.

    Args:
        layer: Whose.
    """

    def __init__(self, layer: HostLinear) -> None:
        self._layer = layer
        self._early = int(EARLY * layer.out_features)
        self._coming: list[torch.cuda.Event] = []
        self._parts = [self._fetch(slice(0, self._early))]

    def weight(self) -> list[Tensor]:
        """Returns the weight's rows in two tensors; the computation waits for them."""
        if len(self._parts) == 1:
            self._parts.append(self._fetch(slice(self._early, None)))
        self._wait()
        return self._parts

    def _fetch(self, rows: slice) -> Tensor:
        weight = self._layer.weight
        device, count = weight.device, len(range(*rows.indices(self._layer.out_features)))
        # Memory of the computing stream: when the visit ends it is free at once, without a look at the other stream.
        here = torch.empty(count, self._layer.in_features, dtype=weight.dtype, device=device)
        if has_no_values(weight):
            return here
        source = self._layer.source.detach()[rows]
        if device.type != "cuda":
            return here.copy_(source)
        side = _stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            here.copy_(source, non_blocking=True)
        self._coming.append(side.record_event())
        return here

    def _wait(self) -> None:
        while self._coming:
            torch.cuda.current_stream(self._layer.weight.device).wait_event(self._coming.pop())

    def __del__(self) -> None:
        self._wait()  # Whoever gets the memory next must not write into it before it is full.
