"""Copies of a model that share its tensors, so that several adapters stand on one base in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def shared_copy(module: nn.Module) -> nn.Module:
    """Returns a copy of all modules, whose parameters and buffers are others on the same storage.

    What is set on a copy (a new layer, ``requires_grad``, ``.data``) is not seen in the original; what is written into
    a tensor is. Tied parameters stay tied. Quantised parameters of bitsandbytes are the original's own, with their
    state: nothing trains them.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        if type(parameter) is nn.Parameter:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
        else:
            memo |= {id(part): part for part in (parameter, *vars(parameter).values()) if part is not None}
    memo |= {id(buffer): buffer.detach() for buffer in module.buffers()}
    for state in (getattr(part, "state", None) for part in module.modules()):  # of 8-bit layers
        memo |= {id(tensor): tensor for tensor in vars(state).values() if isinstance(tensor, Tensor)} if state else {}
    return copy.deepcopy(module, memo)


def own(model: nn.Module, written: Iterable[Tensor], base: nn.Module) -> None:
    """Gives a model storage of its own for what is going to be written into it.

    Args:
        model: Made of a `shared_copy` of the base.
        written: Tensors of the model, or views of them; what trains counts as written too.
        base: Keeps what it has.
    """
    shared = {tensor.data_ptr() for tensor in _named_tensors(base).values()}
    targets = {tensor.data_ptr() for tensor in written}
    targets |= {parameter.data_ptr() for parameter in model.parameters() if parameter.requires_grad}
    copies: dict[int, Tensor] = {}
    for tensor in _named_tensors(model).values():
        place = tensor.data_ptr()
        if place in shared and place in targets:
            tensor.data = copies.setdefault(place, tensor.detach().clone())


def share_equal(module: nn.Module, other: nn.Module) -> None:
    """Lets a model use the storage of another one for all tensors that are the same, bit for bit, in both.

    Args:
        module: Is changed; its head may be another one.
        other: A model on the same base.
    """
    body, theirs = _body(module), _named_tensors(_body(other))
    for name, tensor in _named_tensors(body).items():
        known = theirs.get(name)
        if known is None or not _same(known, tensor):
            continue
        if type(tensor) in (nn.Parameter, Tensor):
            tensor.data = known.data
        else:  # with the state of its quantisation
            parent, _, child = name.rpartition(".")
            body.get_submodule(parent).register_parameter(child, known)


def _same(one: Tensor, other: Tensor) -> bool:
    kinds = {(type(tensor), tensor.dtype, tensor.device) for tensor in (one, other)}
    return len(kinds) == 1 and torch.equal(one.data, other.data)


def _body(module: nn.Module) -> nn.Module:
    """Returns the part of a model of transformers that its heads stand on."""
    from transformers import PreTrainedModel

    found = next((part for part in module.modules() if isinstance(part, PreTrainedModel)), None)
    return module if found is None else found.base_model


def _named_tensors(module: nn.Module) -> dict[str, Any]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
