"""Frozen embeddings that live in the host's memory: of a table of gigabytes a batch reads a few thousand rows.

The table stays a tensor of the GPU by name: its storage is page-locked memory of the host, which the GPU reads over the
bus, as far as a lookup asks for it. So nothing else has to know where it is, no token id goes to the CPU and nothing
waits; the values are the same bits. An output layer, which reads all of it, copies it for a visit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.models.efficiency.host_head import HostLinear, wait_in_host

MIN_BYTES = 2**20


def frozen_tables(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the frozen tables of input and output embeddings, by name; those that are tied are one.

    Works on the meta device.
    """
    users, output = _users(model), getattr(model, "get_output_embeddings", lambda: None)()
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
        and parameter.nbytes >= MIN_BYTES
        and all(isinstance(user, nn.Embedding) or _is_plain(user, output) for user in users[parameter])
    }


def move_to_host(model: nn.Module, device: torch.device) -> str | None:
    """Moves frozen embedding tables to the host's memory, where a model computes on a GPU.

    Args:
        model: On its device, or on the meta device: then it is only made ready for what a plan asks of it.
        device: On which the run computes; on a CPU there is nothing to move.

    Returns:
        Why there is nothing to move, or None.
    """
    tables = frozen_tables(model)
    if not tables:
        return "no embeddings wait in the host's memory: they train or are small"
    users = _users(model)
    for table in tables.values() if device.type == "cuda" else ():
        page_locked = _page_locked(table) if table.device.type == "cuda" else None
        if page_locked is not None:
            table.data = _seen_by_gpu(page_locked, table.device)
        for layer in users[table]:
            if isinstance(layer, nn.Linear):
                wait_in_host(layer, page_locked)
    return None


def _page_locked(table: Tensor) -> Tensor:
    return torch.empty_like(table, device="cpu", pin_memory=True).copy_(table)


def _users(model: nn.Module) -> dict[nn.Parameter, list[nn.Module]]:
    """Returns by parameter the modules that hold it themselves."""
    users: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter, []).append(module)
    return users


def _is_plain(user: nn.Module, output: nn.Module | None) -> bool:
    """Whether a module is the output layer, and nothing but a linear layer."""
    return user is output and type(user) in (nn.Linear, HostLinear)


class _ArrayOfGpu:
    """Page-locked memory as an array of the GPU, by which a tensor can be made of it.

    https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
    """

    def __init__(self, octets: Tensor) -> None:
        self._octets = octets  # the tensor that is made of it keeps this object
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": tuple(octets.shape),
            "typestr": "|u1",
            "data": (octets.data_ptr(), False),
            "version": 3,
        }


def _seen_by_gpu(page_locked: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor of a GPU whose storage is a tensor of the host."""
    octets = page_locked.view(torch.uint8).flatten()
    with torch.cuda.device(device):
        return torch.as_tensor(_ArrayOfGpu(octets), device=device).view(page_locked.dtype).view(page_locked.shape)
