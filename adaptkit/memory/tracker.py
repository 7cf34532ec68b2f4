"""Live bytes by part, while a model runs without values: what is born, what dies, and what was alive at the peak."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from adaptkit.memory.replay import Replay
from adaptkit.memory.scratch import Scratch
from adaptkit.memory.values import INDEXING, is_concrete, leaves, places_of

READS_DEVICE = torch.ops.prim.device.default

WORKSPACE = "workspace"

Parts = Counter[str]


@dataclass
class Interval:
    """What happened between two marks.

    Attributes:
        name: Given by whoever set the first mark.
        start: Live bytes by part when it began.
        peak: Those when most were alive.
        end: Those when it ended.
        freed: Bytes that were freed, by the interval in which they were made, and part.
    """

    name: tuple[Any, ...]
    start: Parts
    peak: Parts
    end: Parts = field(default_factory=Counter)
    freed: Counter[tuple[tuple[Any, ...], str]] = field(default_factory=Counter)


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages of all tensors that operations make, until they are freed.

    Under it floating point tensors are fake: they have a shape and a storage, and no memory. Small tensors of integers
    and booleans are real.

    Args:
        mode: Makes fake tensors; it is entered outside of this one.
        device: On which they claim to be.
        label: Says to which part a new storage belongs, by its tensor.
        allocated: Gives the bytes that the device's allocator takes for so many.
        scratch: Gives the bytes that an operation allocates for itself.

    Attributes:
        live: Bytes alive, by part.
        intervals: Closed ones, in order.
    """

    def __init__(
        self,
        mode: FakeTensorMode,
        device: torch.device,
        label: Callable[[Tensor], str],
        *,
        allocated: Callable[[int], int] = int,
        scratch: Scratch = lambda func, read, made: 0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: Parts = Counter()
        self.intervals: list[Interval] = []
        self._mode, self._device, self._label, self._allocated = mode, device, label, allocated
        self._scratch = scratch
        self._replay = Replay(mode)
        # Address of a storage -> its bytes, its part, and the interval in which it was made.
        self._known: dict[int, tuple[int, list[str], tuple[Any, ...]]] = {}
        self._current = Interval(("begin",), Counter(), Counter())
        self._any: set[int] = set()  # addresses of what says whether any value is true
        self._total = self._peak = 0

    def mark(self, *name: Any) -> None:
        """Ends an interval and begins the next one."""
        self._current.end = self.live.copy()
        self.intervals.append(self._current)
        self._current = Interval(name, self.live.copy(), self.live.copy())
        self._peak = self._total

    def count(self, tensor: Tensor, part: str) -> None:
        """Counts a tensor's storage to a part, be it new or known."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._known:
            size, parts, _ = self._known[address]
            self.live[parts[0]] -= size
            self.live[part] += size
            parts[0] = part
            return
        size = self._allocated(storage.nbytes())
        parts = [part]
        self._known[address] = (size, parts, self._current.name)
        self.live[part] += size
        self._total += size
        if self._total > self._peak:
            self._peak = self._total
            self._current.peak = self.live.copy()
        weakref.finalize(storage, self._free, address).atexit = False

    def _free(self, address: int) -> None:
        size, (part,), made_in = self._known.pop(address)
        self._current.freed[made_in, part] += size
        self._any.discard(address)
        self.live[part] -= size
        self._total -= size

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard would take a third of the time

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs an operation, for real where all that it reads is real, and counts what it made."""
        if func is READS_DEVICE:
            return args[0].device if type(args[0]) is FakeTensor else func(*args)
        tensors = list(leaves((args, (kwargs or {}).values())))
        result = self._run(func, args, dict(kwargs or {}), tensors)
        made = [tensor for tensor in leaves((result,)) if tensor.layout is torch.strided]
        for tensor in made:
            if tensor.untyped_storage()._cdata not in self._known:
                self.count(tensor, self._label(tensor))
        if func.overloadpacket is torch.ops.aten.any:
            self._any.add(result.untyped_storage()._cdata)
        if made and (scratch := self._scratch(func, tensors, made)):
            self._pass_by(self._allocated(scratch))
        return result

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
        if is_concrete(func, tensors, args, kwargs):
            if "device" in kwargs:
                kwargs["device"] = torch.device("cpu")
            with unset_fake_temporarily():
                result = func(*args, **kwargs)
            return tree_map_only(Tensor, self._without_values, result)
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._assumed(tensors[0])
        if not all(type(tensor) is FakeTensor for tensor in tensors):
            if func.overloadpacket in INDEXING:
                args = (args[0], places_of(args[1]), *args[2:])
            args, kwargs = tree_map_only(Tensor, self._fake, (args, kwargs))
        return self._replay.run(func, args, kwargs)

    def _assumed(self, tensor: Tensor) -> bool | int | float:
        """Returns a value where a program asks for one that there is not.

        Whether any value is special (infinite, say): no. All else that can be asked: yes, or 1.
        """
        if tensor.dtype == torch.bool:
            return tensor.untyped_storage()._cdata not in self._any
        return 1.0 if tensor.is_floating_point() else 1

    def _pass_by(self, size: int) -> None:
        """Counts what an operation allocates for itself and frees again."""
        if self._total + size > self._peak:
            self._peak = self._total + size
            self._current.peak = self.live + Counter({WORKSPACE: size})

    def _without_values(self, tensor: Tensor) -> Tensor:
        return self._fake(tensor, uncounted=False) if tensor.is_floating_point() else tensor

    def _fake(self, tensor: Tensor, *, uncounted: bool = True) -> Tensor:
        """Returns a tensor without values in place of a real one; its storage has been counted already."""
        if isinstance(tensor, FakeTensor):
            return tensor
        size, stride = tensor.shape, tensor.stride()
        with self._mode:
            fake = torch.empty_strided(size, stride, dtype=tensor.dtype, device=self._device)
        if uncounted:
            storage = fake.untyped_storage()
            self._known[storage._cdata] = (0, ["none"], ())
            weakref.finalize(storage, self._free, storage._cdata).atexit = False
        return fake
