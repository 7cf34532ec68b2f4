"""Activations that wait in the host's memory until the backward pass asks for them.

On CUDA they leave and come back on a stream of their own, beside the computation; what comes back next is fetched while
the block behind it goes backward.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from adaptkit.models.values import has_no_values

MIN_BYTES = 2**20


class HostActivations:
    """Keeps chosen activations in the host's memory.

    Args:
        device: On which the run computes; a plan for a GPU may be made without one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._leaving: list[tuple[torch.cuda.Event | None, Tensor]] = []
        self._stream: torch.cuda.Stream | None = None
        self._last: weakref.ref[Away] | None = None
        self._buffers = Buffers()

    @contextmanager
    def saving(self, states: Tensor) -> Iterator[None]:
        """The context in which autograd, where it saves ``states``, saves a copy in the host's memory.

        The copy is made beside what is computed in the context, and is complete behind it. Whatever else autograd saves
        stays as it is: it may be shared by all blocks (a mask, an encoder's output). So does what is small.
        """
        chosen = weakref.ref(states)  # a hook lives as long as the graph, and must not keep the tensor

        def leave(tensor: Tensor) -> Any:
            return self._leave(tensor) if tensor is chosen() and tensor.nbytes >= MIN_BYTES else tensor

        try:
            with saved_tensors_hooks(leave, _come_back):
                yield
        finally:
            self._all_gone()

    def _leave(self, tensor: Tensor) -> Away:
        away = Away(self, tensor, self._last)
        self._last = weakref.ref(away)
        return away

    def to_host(self, tensor: Tensor) -> Tensor | None:
        """Returns a copy in the host's memory; on CUDA it is complete when `stream` is. In a plan there is none."""
        if self._device.type == "cuda" and has_no_values(tensor):
            self._hold(None, tensor)
            return None
        if tensor.device.type != "cuda":
            return tensor.to("cpu", copy=True)
        here, side = torch.cuda.current_stream(tensor.device), self.stream(tensor.device)
        host = self._buffers.take(tensor)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            host.copy_(tensor, non_blocking=True)
        self._hold(side.record_event(), tensor)
        return host

    def _hold(self, copied: torch.cuda.Event | None, tensor: Tensor) -> None:
        """Keeps a tensor until it is copied: whoever gets its memory next must not write into it before."""
        self._leaving.append((copied, tensor))

    def take_back(self, host: Tensor | None) -> None:
        """Takes a buffer that is no longer needed; whatever is copied later is copied on the same stream."""
        if host is not None and host.is_pinned():
            self._buffers.take_back(host)

    def _all_gone(self) -> None:
        """Lets go of the tensors that are being copied; the computation waits for the copies."""
        for copied, tensor in self._leaving:
            if copied is not None:
                torch.cuda.current_stream(tensor.device).wait_event(copied)
        self._leaving.clear()

    def stream(self, device: torch.device) -> torch.cuda.Stream:
        """Returns the stream of the copies."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._stream


class Buffers:
    """Memory of the host that is used again: page-locked memory is slow to get, and not to be had in a recording.

    Sizes are powers of two, as torch's allocator of page-locked memory has them too: batches of all shapes share what
    there is.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[torch.UntypedStorage]] = defaultdict(list)

    def take(self, like: Tensor) -> Tensor:
        """Returns a tensor of the host for the values of another one, in page-locked memory if that is a GPU's."""
        size = 1 << (like.nbytes - 1).bit_length()
        free = self._free[size]
        if not free:
            free.append(torch.empty(size, dtype=torch.uint8, pin_memory=like.is_cuda).untyped_storage())
        return torch.empty(0, dtype=like.dtype).set_(free.pop())[: like.numel()].view(like.shape)

    def take_back(self, tensor: Tensor) -> None:
        """Takes the memory of a tensor that is no longer needed."""
        storage = tensor.untyped_storage()
        self._free[storage.nbytes()].append(storage)


class Away:
    """A tensor in the host's memory.

    Args:
        owner: Copies it.
        tensor: As autograd would have saved it.
        before: What left before it, which the backward pass will want after it.
    """

    def __init__(self, owner: HostActivations, tensor: Tensor, before: weakref.ref[Away] | None) -> None:
        self._owner, self._before, self._device = owner, before, tensor.device
        self._shape, self._dtype = tensor.shape, tensor.dtype
        self._host: Tensor | None = None  # in a plan, and where there is no room for it
        self._coming: tuple[Tensor, torch.cuda.Event | None] | None = None
        self._host = owner.to_host(tensor)

    def back(self) -> Tensor:
        """Returns the tensor on its device, and has the one that will be wanted next fetched."""
        if self._host is not None and self._device.type != "cuda":
            return self._host.to(self._device)
        self._fetch()
        assert self._coming is not None
        (tensor, arrived), self._coming = self._coming, None
        self._wait(arrived)
        following = self._before() if self._before else None
        if following is not None:
            following._fetch()
        return tensor

    def _fetch(self) -> None:
        if self._coming is not None:
            return
        # Memory of the computing stream: when the block is done it is free at once, without a look at the other stream.
        tensor = torch.empty(self._shape, dtype=self._dtype, device=self._device)
        if self._host is None:  # in a plan
            self._coming = tensor, None
            return
        side = self._owner.stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            tensor.copy_(self._host, non_blocking=True)
        self._coming = tensor, side.record_event()

    def _wait(self, arrived: torch.cuda.Event | None) -> None:
        if arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(arrived)

    def __del__(self) -> None:
        if self._coming is not None:  # fetched for a backward pass that broke off
            self._wait(self._coming[1])
        self._owner.take_back(self._host)


def _come_back(saved: Any) -> Tensor:
    return saved.back() if isinstance(saved, Away) else saved
