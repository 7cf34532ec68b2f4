"""Which tensors have values while a model runs without: small ones of integers and booleans."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

# Token ids, labels and masks of a batch have values, so that what depends on them has its true size; beyond so many
# elements (a mask of 2,048 x 2,048 that every block makes anew) they have none, as everything else.
LARGEST_REAL = 2**20
INDEXING = frozenset({torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_})
_VALUES: Any = type({}.values())


def leaves(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yields the tensors among an operation's arguments or results, those in lists too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple) or type(value) is _VALUES:
            yield from leaves(value)


def places_of(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Returns indices with the places where they are true instead of masks that have values: how many is known then."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            with unset_fake_temporarily():
                places += index.nonzero().unbind(1)
        else:
            places.append(index)
    return places


def is_concrete(func: Any, tensors: list[Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation reads and makes nothing but small integers and booleans."""
    if not tensors:
        return _makes_integers(func, args, kwargs)
    if any(isinstance(tensor, FakeTensor) or tensor.is_floating_point() for tensor in tensors):
        return False
    dtype = kwargs.get("dtype")
    if dtype is not None and dtype.is_floating_point:
        return False
    try:
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))  # type: ignore[no-untyped-call]
        return bool(math.prod(shape) <= LARGEST_REAL)
    except RuntimeError:
        return True


def _makes_integers(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    dtype = kwargs.get("dtype")
    if dtype is None:
        return func.overloadpacket.__name__ in ("arange", "full", "scalar_tensor") and not any(
            isinstance(value, float) for value in args
        )
    sizes = args[0] if args and isinstance(args[0], list | tuple) else ()
    return not (dtype.is_floating_point or dtype.is_complex) and math.prod(sizes) <= LARGEST_REAL
