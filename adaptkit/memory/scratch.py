"""What an operation allocates for itself and frees again, by device; a trace on other tensors does not see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

# From an operation, the tensors that it reads and those that it makes, to bytes.
Scratch: TypeAlias = Callable[[Any, Sequence[Tensor], Sequence[Tensor]], int]

# Of a sum on a GPU; aten/src/ATen/native/cuda/Reduce.cuh, setReduceConfig.
WARP, MOST_THREADS = 32, 512
FEW_VALUES, MANY_VALUES = 16, 256  # of a thread
PROCESSORS, THREADS = 132, 2048  # of an H100, and of each processor; where there is no GPU to ask


def scratch_of(device: torch.device) -> Scratch:
    """Returns what tells the bytes for a device."""
    return _of_gpu if device.type == "cuda" else _of_cpu


def _of_cpu(func: Any, read: Sequence[Tensor], made: Sequence[Tensor]) -> int:
    """Returns the bytes of the copies that an elementwise operation makes of tensors of another precision.

    On a GPU the kernel converts while it reads (aten/src/ATen/TensorIterator.cpp, compute_types).
    """
    if torch.Tag.pointwise not in func.tags:
        return 0
    distinct = {id(tensor): tensor for tensor in (*read, *made)}.values()  # what is written in place is in both
    floats = [tensor for tensor in distinct if tensor.is_floating_point() and tensor.ndim]
    common = max((tensor.dtype.itemsize for tensor in floats), default=0)
    return sum(tensor.numel() * common for tensor in floats if tensor.dtype.itemsize != common)


def _of_gpu(func: Any, read: Sequence[Tensor], made: Sequence[Tensor]) -> int:
    """Returns the bytes of the partial sums over rows, as for the gradient of a vector."""
    if func is not torch.ops.aten.sum.dim_IntList or not (read[0].ndim and made[0].ndim):
        return 0
    columns, outputs = read[0].shape[-1], made[0].numel()
    return _partial_sums(outputs, read[0].numel() // outputs, columns) if made[0].shape[-1] == columns > 1 else 0


def _partial_sums(outputs: int, inputs: int, columns: int) -> int:
    """Returns the bytes of fp32 numbers for so many sums of so many numbers each, neighbours in a row of columns."""
    vector = next(size for size in (4, 2, 1) if columns % size == 0)
    threads = MOST_THREADS // vector
    across, down = (min(_power_of_two(size), threads) for size in (columns // vector, inputs))
    height = min(down, threads // min(across, WARP))
    width = min(across, threads // height)
    if inputs < min(height * FEW_VALUES, MANY_VALUES):
        return 0
    values, blocks = -(-inputs // height), -(-outputs // vector // width)
    processors, threads_of_each = _processors()
    room = processors * (threads_of_each // (width * height))
    if values < MANY_VALUES or blocks > room:
        return 0
    parts = max(min(-(-room // blocks), -(-values // FEW_VALUES)), -(-values // MANY_VALUES))
    return 4 * outputs * parts * width * vector if parts > 1 else 0


def _power_of_two(size: int) -> int:
    """Returns the largest that is not above a size."""
    return 1 << (size.bit_length() - 1) if size > 0 else 1


def _processors() -> tuple[int, int]:
    """Returns how many processors the GPU has, and how many threads each runs."""
    if not torch.cuda.is_available():
        return PROCESSORS, THREADS
    properties: Any = torch.cuda.get_device_properties()
    return properties.multi_processor_count, properties.max_threads_per_multi_processor
