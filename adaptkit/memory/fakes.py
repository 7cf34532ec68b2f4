"""A model on the meta device becomes one whose tensors claim to be on a device, and still have no memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.memory.values import LARGEST_REAL

# Whose objects hold tensors beside the parameters: the scales of packed weights.
HOLDS_TENSORS = "bitsandbytes"
_TABLES = frozenset({"_parameters", "_buffers", "_modules"})


def claimed_device(device: torch.device) -> torch.device:
    """Returns the device of fake tensors that stand for those of a device: itself, unless there is no GPU here.

    Autograd asks the driver for the GPU whose tensors it goes back through, fake ones too. A torch that could use a GPU
    is not enough.
    """
    known = device.type != "cuda" or torch.cuda.is_available()
    return torch.device(device.type if known else "cpu")


def give_storages(model: nn.Module, device: torch.device) -> None:
    """Replaces every tensor of a model by a fake one, in place; to be called inside of `FakeTensorMode`.

    Tensors that share a storage still do.

    Args:
        model: On the meta device.
        device: On which the new tensors claim to be.
    """
    fakes = _Fakes(device)
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: fakes.of(tensor) for name, tensor in tensors.items()})
        for name, value in list(vars(module).items()):
            if isinstance(value, dict) and name not in _TABLES:
                value.update({key: fakes.of(part) for key, part in value.items()})
            elif isinstance(value, Tensor) or _holds_tensors(value):
                object.__setattr__(module, name, fakes.of(value))


def held_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yields the tensors of a module and of those in it, and what is kept beside packed weights."""
    for part in module.modules():
        for value in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
            yield from _inside(value)


def _inside(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    if isinstance(value, nn.Parameter) or _holds_tensors(value):
        for name, part in vars(value).items():
            if name != "data":
                yield from _inside(part)


def address(tensor: Tensor) -> int:
    """Returns what tells a tensor's storage from others, as long as it lives."""
    return int(tensor.untyped_storage()._cdata)


class _Fakes:
    """Gives the same fake for the same original."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[int, Any] = {}
        self._storages: dict[int, Tensor] = {}
        self._originals: list[Any] = []  # alive, so that no other object gets their id

    def of(self, value: Any) -> Any:
        """Returns what stands in the place of a tensor or of an object that holds tensors; all else as it is."""
        if not (isinstance(value, Tensor) or _holds_tensors(value)):
            return value
        if id(value) not in self._known:
            self._originals.append(value)
            self._known[id(value)] = self._tensor(value) if isinstance(value, Tensor) else self._object(value)
        return self._known[id(value)]

    def _object(self, value: Any) -> Any:
        self._known[id(value)] = value
        for name, part in list(vars(value).items()):
            setattr(value, name, self.of(part))
        return value

    def _tensor(self, tensor: Tensor) -> Tensor:
        if not (tensor.is_meta or tensor.is_floating_point() or tensor.numel() > LARGEST_REAL):
            return tensor  # what depends on its values is to have its true size
        fake = self._storage(tensor)
        if isinstance(tensor, nn.Parameter):
            fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            for name, part in vars(tensor).items():  # of a class of bitsandbytes
                if name != "data":
                    setattr(fake, name, self.of(part))
        return fake

    def _storage(self, tensor: Tensor) -> Tensor:
        there = self._storages.get(address(tensor))
        if there is not None and there.dtype == tensor.dtype:
            return there.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self._device)
        self._storages[address(tensor)] = new
        return new


def _holds_tensors(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == HOLDS_TENSORS and not isinstance(value, nn.Module | Tensor)
