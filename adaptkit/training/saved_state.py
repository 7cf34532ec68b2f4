"""What a strategy saves must be all that changes: else what was trained is not what is loaded again."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from adaptkit.errors import PluginError

if TYPE_CHECKING:
    from adaptkit.strategy import Strategy

Digest: TypeAlias = tuple[int, ...]


def check_saves_what_trains(model: nn.Module, strategy: Strategy[Any]) -> None:
    """Makes sure, before the first step, that `Strategy.state` has room for all that trains.

    Names and shapes may be others than the model's, as PEFT's are; fewer numbers than train cannot be right.

    Raises:
        PluginError: It leaves trainable parameters out.
    """
    saved = strategy.state(model)
    memory = _memory(saved.values())
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    left_out = [name for name, p in trainable.items() if name not in saved and not memory & _memory([p])]
    if left_out and _size(saved.values()) < _size(trainable.values()):
        raise PluginError(
            f"{title(strategy)} trains {len(left_out)} tensor(s) that it does not save: {_some(left_out)}",
            where="state() of the strategy",
            fix="return all that may ever train from state(), or leave the method out: its default does; "
            f"`adaptkit check {strategy.name}` tries it",
        )


class Unsaved:
    """The parameters that neither train nor are saved, as they are now.

    Args:
        model: The adapted model, before its first step.
        strategy: Says what is saved. What is packed (NF4, int8) is passed over: bitsandbytes packs it anew as it likes.
    """

    def __init__(self, model: nn.Module, strategy: Strategy[Any]) -> None:
        saved = strategy.state(model)
        memory = _memory(saved.values())
        self._strategy = strategy
        self._digests = {
            name: _digest(parameter)
            for name, parameter in model.named_parameters()
            if not parameter.requires_grad
            and parameter.is_floating_point()
            and name not in saved
            and not memory & _memory([parameter])
        }

    def check(self, model: nn.Module) -> None:
        """Makes sure that they are what they were; reads each once.

        Raises:
            PluginError: The strategy has written into some of them.
        """
        now = dict(model.named_parameters())
        changed = [name for name, was in self._digests.items() if name in now and _digest(now[name]) != was]
        if changed:
            raise PluginError(
                f"{title(self._strategy)} has changed {len(changed)} tensor(s) that it neither trains nor saves: "
                f"{_some(changed)}; a saved run would not be what was trained",
                fix="leave what is frozen alone, or train it and declare Capabilities(changes_base=True); "
                f"`adaptkit check {self._strategy.name}` tries it",
            )


def title(strategy: Strategy[Any]) -> str:
    """Returns the name of a strategy with the distribution that it came from, or the module where pip knows none."""
    module = type(strategy).__module__
    distributions = importlib.metadata.packages_distributions().get(module.partition(".")[0], [])
    origin = " or ".join(f"{name} {importlib.metadata.version(name)}" for name in dict.fromkeys(distributions))
    return f"strategy {strategy.name!r} of {origin or module}"


def _digest(tensor: Tensor) -> Digest:
    """Returns what all but surely is another after any change: the sum of the bits, taken as 64-bit numbers."""
    octets = tensor.detach().reshape(-1).view(torch.uint8)
    if octets.storage_offset() % 8:
        octets = octets.clone()
    whole = len(octets) // 8 * 8
    return (int(octets[:whole].view(torch.int64).sum()), *octets[whole:].tolist())


def _memory(tensors: Iterable[Tensor]) -> set[int]:
    """Returns where tensors lie; what `state` gives are usually the model's own."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
