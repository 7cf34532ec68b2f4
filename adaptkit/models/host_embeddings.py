"""Frozen embeddings that live in the host's memory: of a table of gigabytes a batch reads a few thousand rows.

The table stays a tensor of the GPU by name: its storage is page-locked memory of the host, which the GPU reads over the
bus, as far as a lookup asks for it. So nothing else has to know where it is, no token id goes to the CPU and nothing
waits; the values are the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MIN_BYTES = 2**20


def frozen_tables(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the embedding tables, by name, that are only ever looked up: frozen, and tied to no output layer.

    Works on the meta device.
    """
    users: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter, []).append(module)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
        and parameter.nbytes >= MIN_BYTES
        and all(isinstance(module, nn.Embedding) for module in users[parameter])
    }


def move_to_host(model: nn.Module) -> str | None:
    """Moves the frozen embedding tables of a model on a GPU to the host's memory; elsewhere they are there already.

    Returns:
        Why there is nothing to move, or None.
    """
    tables = frozen_tables(model)
    if not tables:
        return "no embeddings wait in the host's memory: they train, are small, or are the output layer too"
    for table in tables.values():
        if table.device.type == "cuda":
            table.data = _seen_by_gpu(table.data)
    return None


class _PageLocked:
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


def _seen_by_gpu(table: Tensor) -> Tensor:
    """Returns a tensor of the same device and values whose storage is in the host's memory."""
    host = torch.empty_like(table, device="cpu", pin_memory=True).copy_(table)
    octets = host.view(torch.uint8).flatten()
    with torch.cuda.device(table.device):
        return torch.as_tensor(_PageLocked(octets), device=table.device).view(table.dtype).view(table.shape)
