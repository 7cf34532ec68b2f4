"""Tensors that are only the shape of one: on the meta device, or while a plan is made."""

from __future__ import annotations

from torch import Tensor


def has_no_values(tensor: Tensor) -> bool:
    """Whether a tensor is only the shape of one."""
    from torch._subclasses import FakeTensor

    return tensor.is_meta or isinstance(tensor, FakeTensor)
