"""What a device takes besides the tensors, and how much memory it has."""

from __future__ import annotations

import math

import torch

MIB = 2**20
# c10/cuda/CUDACachingAllocator.cpp: kMinBlockSize, kMinLargeAlloc, kRoundLarge, kSmallSize
CUDA_BLOCK, CUDA_LARGE, CUDA_ROUND, CUDA_REST = 512, 10 * MIB, 2 * MIB, MIB
# Of cuBLAS, allocated through torch at the first product: CUBLAS_WORKSPACE_CONFIG's default is :4096:2:16:8 (8 MiB),
# from Hopper on :4096:8 (32 MiB); https://docs.nvidia.com/cuda/cublas/#results-reproducibility
CUBLAS_WORKSPACE = 8 * MIB + 128 * 1024
HOPPER_WORKSPACE = 32 * MIB
# Each thread that computes, and each stream, has its own (aten/src/ATen/cuda/CublasHandlePool.cpp): the forward and the
# backward pass, on an H200 plans with one were 33 MiB too low for every run; and beside recorded passes an evaluation.
CUBLAS_WORKSPACES, CUBLAS_WORKSPACES_RECORDED = 2, 3
HOPPER = (9, 0)
# Context and loaded kernels, beside what the allocator counts. A round figure that was not measured: it depends on the
# driver and on which kernels a run loads.
CUDA_CONTEXT = 600 * MIB


def allocated_bytes(device: torch.device, size: int) -> int:
    """Returns the bytes that the device's allocator takes for so many.

    On CUDA whole blocks; from 10 MiB on it asks the driver for a multiple of 2 MiB, of which it leaves no rest of up to
    1 MiB to others (``get_allocation_size``, ``should_split``).
    """
    if device.type != "cuda":
        return size
    blocks = math.ceil(size / CUDA_BLOCK) * CUDA_BLOCK
    whole = math.ceil(blocks / CUDA_ROUND) * CUDA_ROUND
    return whole if blocks >= CUDA_LARGE and whole - blocks <= CUDA_REST else blocks


def library_workspace(device: torch.device, *, recorded: bool) -> int:
    """Returns the bytes that libraries allocate through torch for themselves.

    Args:
        device: Of a run.
        recorded: Whether passes are recorded, on a stream of their own.
    """
    if device.type != "cuda":
        return 0
    here = torch.cuda.is_available() and torch.cuda.get_device_capability() >= HOPPER
    count = CUBLAS_WORKSPACES_RECORDED if recorded else CUBLAS_WORKSPACES
    return count * (HOPPER_WORKSPACE if here else CUBLAS_WORKSPACE)


def context_bytes(device: torch.device) -> int:
    """Returns the bytes of a device that no tensor can have."""
    return CUDA_CONTEXT if device.type == "cuda" else 0


def free_memory(device: torch.device) -> int:
    """Returns the bytes that a run on this machine's device may use: of a GPU all, else the free memory of the host."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return _available_ram()


def _available_ram() -> int:
    """Returns what Linux calls available, elsewhere all memory that there is."""
    import os
    from pathlib import Path

    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
