"""What operations made of tensors without values, played back where the same comes again: equal blocks cost little."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

# What is told from others by type and value.
PLAIN = frozenset(
    {int, float, bool, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
)
# What such operations give does not follow from their arguments' shapes, or they change these.
SPECIAL = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view})

Maker: TypeAlias = Callable[[list[Tensor]], Any]  # from the tensors among the arguments


class _UnknownError(Exception):
    """Something cannot be told from others by what is known of it."""


class Replay:
    """Runs operations on fake tensors, and remembers what they made of which arguments.

    What an operation gives follows from the shapes of what it reads, and from the numbers beside them: there are no
    values. What would be played back is compared with what the operation gave; where they differ, it runs every time.
    The mode has a memory too, for all modes of a process; to look into it takes longer than most operations.

    Args:
        mode: Makes fake tensors.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._makers: dict[tuple[Any, ...], Maker | None] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Returns what an operation gives."""
        tensors: list[Tensor] = []
        try:
            key = _key(func, args, kwargs, tensors)
        except _UnknownError:
            return func(*args, **kwargs)
        maker = self._makers.get(key)
        if maker is not None:
            return maker(tensors)
        result = func(*args, **kwargs)
        if key not in self._makers:
            plain = _key(func, args, kwargs, []) == key and not SPECIAL.intersection(func.tags)
            self._makers[key] = self._recorded(tensors, result) if plain else None
        return result

    def _recorded(self, tensors: list[Tensor], result: Any) -> Maker | None:
        """Returns what makes the same again; None: nothing does."""
        try:
            maker = self._maker(result, tensors)
            same = _description((tensors, result)) == _description((tensors, maker(tensors)))
        except _UnknownError:
            return None
        return maker if same else None

    def _maker(self, result: Any, tensors: list[Tensor]) -> Maker:
        """Returns what gives the argument that a result is, or a view of the one whose storage it has, or a new one."""
        if isinstance(result, list | tuple):
            makers, kind = [self._maker(part, tensors) for part in result], type(result)
            return lambda given: kind([maker(given) for maker in makers])
        if result is None:
            return lambda _: None
        if type(result) is not FakeTensor or result.layout is not torch.strided:
            raise _UnknownError
        for place, tensor in enumerate(tensors):
            if result is tensor:
                return itemgetter(place)
        return self._new(result, [tensor.untyped_storage()._cdata for tensor in tensors])

    def _new(self, result: FakeTensor, addresses: list[int]) -> Maker:
        shape, stride, offset = result.shape, result.stride(), result.storage_offset()
        dtype, device, mode = result.dtype, result.device, self._mode
        address = result.untyped_storage()._cdata
        place = addresses.index(address) if address in addresses else None

        def make(given: list[Tensor]) -> Tensor:
            with unset_fake_temporarily():
                if place is None:
                    bare = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
                else:
                    bare = torch.empty(0, dtype=dtype, device="meta")
                    bare.set_(given[place].untyped_storage(), offset, shape, stride)
            return FakeTensor(mode, bare, device)

        return make


def _key(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: list[Tensor]) -> tuple[Any, ...]:
    """Returns what tells a call from others; the tensors among its arguments come behind those that there are."""
    key: list[Any] = [func, torch.get_default_dtype()]
    places: dict[int, int] = {}
    _describe(args, key, tensors, places)
    if kwargs:
        _describe(kwargs, key, tensors, places)
        _describe(kwargs.values(), key, tensors, places)
    return tuple(key)


def _description(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    _describe(values, found, [], {})
    return found


def _describe(values: Iterable[Any], found: list[Any], tensors: list[Tensor], places: dict[int, int]) -> None:
    """Appends what an operation can know of its arguments.

    Args:
        values: The arguments.
        found: Gets what is known.
        tensors: Gets the tensors.
        places: Of tensors and storages, by address, in the order in which they come: which are the same.
    """
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            if value.constant is not None or value.layout is not torch.strided:
                raise _UnknownError
            storage = value.untyped_storage()
            found += (
                value.shape,
                value.stride(),
                value.storage_offset(),
                value.dtype,
                value.fake_device,
                value.requires_grad,
                torch._C._dispatch_keys(value).raw_repr(),  # conjugation, inference mode and the like
                storage.nbytes(),
                places.setdefault(id(value), len(places)),
                places.setdefault(storage._cdata, len(places)),
            )
            tensors.append(value)
        elif kind in PLAIN:
            found += (kind, value)
        elif issubclass(kind, list | tuple):
            found += (list, len(value))
            _describe(value, found, tensors, places)
        else:
            raise _UnknownError
