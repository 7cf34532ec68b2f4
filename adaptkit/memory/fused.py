"""What fused kernels allocate, where a run would use them: in a plan the model's modules get stand-ins for them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.models.efficiency.kernels import (
    ROTARY,
    Kernels,
    Rotation,
    fuse_modules,
    is_fusible,
    is_norm,
    liger_kernels,
    modelling_files,
    same_on_random_numbers,
)
from adaptkit.models.replacing import replaced

SMALL = 64  # features of the modules on which it is tried whether a kernel gives the same


def fuse_as_liger(model: nn.Module) -> list[ModuleType]:
    """Lets a model without values allocate as it would with Liger's kernels, where these are installed.

    Returns:
        The modelling files whose rotary positions would be fused.
    """
    if liger_kernels() is None:
        return []
    fuse_modules(model, STAND_INS, _same_when_small)
    return [source for source in modelling_files(model) if _rotates_alike(source)]


@contextmanager
def rotations(sources: list[ModuleType]) -> Iterator[None]:
    """The context in which rotary positions are computed in place, where a run would do so."""
    with ExitStack() as stack:
        for source in sources:
            stack.enter_context(replaced(source, **{ROTARY: _rotation(getattr(source, ROTARY))}))
        yield


def _same_when_small(module: nn.Module, twin: type[nn.Module]) -> bool:
    """Says so of a small copy of a module, which has values."""
    weight: Any = getattr(module, "weight", None)
    if is_norm(module) and weight.dtype != torch.bfloat16:
        return False
    small = copy.copy(module)
    if is_norm(module):
        small.__dict__["_parameters"] = {"weight": nn.Parameter(torch.rand(SMALL).bfloat16() + 0.5)}
    else:
        layers = {
            name: nn.Linear(SMALL, SMALL, bias=False).bfloat16() for name in ("gate_proj", "up_proj", "down_proj")
        }
        small.__dict__["_modules"] = {**module._modules, **layers}
    try:
        return same_on_random_numbers(small, twin)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False  # It looks at more than its parameters.


def _rotates_alike(source: ModuleType) -> bool:
    q, cos, sin = torch.randn(1, 2, 3, 8), torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    cos[..., 4:], sin[..., 4:] = cos[..., :4], sin[..., :4]
    try:
        found = getattr(source, ROTARY)(q, q, cos, sin)[0]
    except (TypeError, RuntimeError, AttributeError):
        return False
    turned = torch.cat((-q[..., 4:], q[..., :4]), dim=-1)
    return bool(torch.allclose(found, q * cos + turned * sin, atol=1e-5))


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if _has_values(x):
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
    return _Norm.apply(x, weight)  # type: ignore[no-untyped-call,no-any-return]


def _gate(a: Tensor, b: Tensor) -> Tensor:
    if _has_values(a):
        return nn.functional.silu(a) * b
    return _Gate.apply(a, b)  # type: ignore[no-untyped-call,no-any-return]


def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return _Rotation.apply(q, k, cos, sin)  # type: ignore[no-untyped-call,no-any-return]


def _rotation(plain: Rotation) -> Rotation:
    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return (_rotate if is_fusible(q, cos, args, kwargs) else plain)(q, k, cos, sin, *args, **kwargs)

    return rotate


STAND_INS = Kernels(_norm, _gate, _rotate)


def _has_values(tensor: Tensor) -> bool:
    from adaptkit.models.values import has_no_values

    return not has_no_values(tensor)


class _Norm(torch.autograd.Function):
    """Keeps its input and a number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight, _rows = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight) if ctx.needs_input_grad[1] else None


class _Gate(torch.autograd.Function):
    """Keeps its inputs, into which it writes their gradients."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.empty_like(a)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return a, b


class _Rotation(torch.autograd.Function):
    """Turns in place, forth and back, what is contiguous with the heads behind the rows, else a copy of it."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _rows_first(q), _rows_first(k)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return _rows_first(gradients[0]), _rows_first(gradients[1]), None, None


def _rows_first(heads: Tensor) -> Tensor:
    """Returns ``(batch, heads, rows, size)`` as liger_kernel/ops/rope.py has it."""
    return heads.transpose(1, 2).contiguous().transpose(1, 2)
