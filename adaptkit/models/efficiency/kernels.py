"""Fused kernels for what surrounds the matrix products on a GPU: norms, gates, rotary positions (arXiv:2410.10989).

Unfused, each of these reads and writes the activations many times over. A module gets a fused forward only where it
gives on random numbers what its own forward gives: no list of architectures, and one that looks like another but
computes something else is left as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.models.values import has_no_values

Rotation = Callable[..., tuple[Tensor, Tensor]]
ROTARY = "apply_rotary_pos_emb"  # what transformers calls it in every file of a model that has it
_GATES = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_TOLERANCE = 2e-2  # of bf16, which has 8 bits, after a few sums


@dataclass(frozen=True)
class Kernels:
    """Functions that autograd knows how to go back through.

    Attributes:
        norm: ``(x, weight, eps)`` to ``x / rms(x) * weight``.
        gate: ``(a, b)`` to ``silu(a) * b``.
        rotate: Applies rotary positions, called as transformers' own function.
    """

    norm: Callable[[Tensor, Tensor, float], Tensor]
    gate: Callable[[Tensor, Tensor], Tensor]
    rotate: Rotation


def liger_kernels() -> Kernels | None:
    """Returns Liger's kernels; None where they or Triton are not installed."""
    if find_spec("liger_kernel") is None or find_spec("triton") is None:
        return None
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.rope import LigerRopeFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    # Not in place: the gradient that comes in may be another branch's too.
    return Kernels(
        norm=lambda x, weight, eps: LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False, None),
        gate=LigerSiLUMulFunction.apply,
        rotate=lambda q, k, cos, sin: LigerRopeFunction.apply(q, k, cos, sin),
    )


def fuse(model: nn.Module, kernels: Kernels) -> int:
    """Gives modules fused forwards, in place; tensors and names stay what they are.

    Args:
        model: On its device, its frozen weights in bf16.
        kernels: What is called.

    Returns:
        How many modules got one.
    """
    fused = fuse_modules(model, kernels, same_on_random_numbers)
    for source in modelling_files(model):
        _fuse_rotation(source, kernels, next(model.parameters()).device)
    return fused


def fuse_modules(model: nn.Module, kernels: Kernels, same: Callable[[nn.Module, type[nn.Module]], bool]) -> int:
    """Fuses norms and gates.

    Args:
        model: As for `fuse`.
        kernels: As for `fuse`.
        same: Says whether a module would give the same as one of another class.

    Returns:
        How many modules got a fused forward.
    """
    fused = 0
    verdicts: dict[Any, bool] = {}
    for module in model.modules():
        for looks_like, make in ((is_norm, _norm_class), (_is_gated, _gated_class)):
            if not looks_like(module):
                continue
            twin: type[nn.Module] = make(type(module), kernels)  # type: ignore[arg-type]
            key = (type(module), _eps(module), str(getattr(module, "act_fn", "")))
            if verdicts.setdefault(key, same(module, twin)):
                module.__class__ = twin
                fused += 1
    return fused


def modelling_files(model: nn.Module) -> list[ModuleType]:
    """Returns the Python modules that define the classes of a model's modules and have rotary positions."""
    sources = {type(module).__module__ for module in model.modules()}
    return [sys.modules[name] for name in sorted(sources) if hasattr(sys.modules[name], ROTARY)]


def is_norm(module: nn.Module) -> bool:
    """Returns whether a module looks like a root mean square norm."""
    weight = getattr(module, "weight", None)
    return type(module).__name__.endswith("RMSNorm") and isinstance(weight, Tensor) and _eps(module) is not None


def _eps(module: Any) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _is_gated(module: nn.Module) -> bool:
    return {name for name, _ in module.named_children()} == _GATES


@cache
def _norm_class(plain: type[nn.Module], kernels: Kernels) -> type[nn.Module]:
    class Fused(plain):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: Tensor) -> Tensor:
            if hidden_states.dtype != self.weight.dtype:
                result: Tensor = super().forward(hidden_states)
                return result
            eps = _eps(self)
            assert eps is not None
            return kernels.norm(hidden_states, self.weight, eps)

    Fused.__name__, Fused.__qualname__ = plain.__name__, plain.__qualname__
    return Fused


@cache
def _gated_class(plain: type[nn.Module], kernels: Kernels) -> type[nn.Module]:
    class Fused(plain):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.down_proj(kernels.gate(self.gate_proj(x), self.up_proj(x)))
            return result

    Fused.__name__, Fused.__qualname__ = plain.__name__, plain.__qualname__
    return Fused


def same_on_random_numbers(module: Any, twin: type[nn.Module]) -> bool:
    """Returns whether a module would give the same as one of another class, for large and for small numbers."""
    plain, like = type(module), _example(module)
    if like is None:
        return False
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), torch.autocast(like.device.type, torch.bfloat16):
            pairs = []
            for scale in (1.0, 1e-3):  # The eps of a norm shows in small ones.
                x = like * scale
                expected = module(x.clone())
                module.__class__ = twin
                pairs.append((expected, module(x.clone())))
                module.__class__ = plain
    finally:
        module.__class__ = plain
        for part, mode in modes.items():
            part.training = mode
    return all(_close(one, other) for one, other in pairs)


def _example(module: Any) -> Tensor | None:
    """Returns random input of shape ``(2, 8, features)`` in the dtype of the module; None where it is not bf16."""
    weight = module.weight if is_norm(module) else None
    features = len(weight) if weight is not None else getattr(module.gate_proj, "in_features", None)
    dtype = weight.dtype if weight is not None else torch.bfloat16
    if dtype != torch.bfloat16 or features is None:
        return None
    device = next(module.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(2, 8, features, generator=generator, device=device).to(dtype)


def _close(one: Tensor, other: Tensor) -> bool:
    difference = (one.float() - other.float()).norm() / one.float().norm().clamp_min(1e-30)
    return one.dtype == other.dtype and bool(difference <= _TOLERANCE)


def is_fusible(q: Tensor, cos: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Returns whether a call of the function for rotary positions is one that the kernel takes over."""
    return not (args or kwargs) and q.dtype == torch.bfloat16 and cos.shape[-1] == q.shape[-1]


def _fuse_rotation(source: ModuleType, kernels: Kernels, device: torch.device) -> None:
    """Replaces the function of a modelling file by one that calls the kernel where it can, on this kind of device."""
    plain = getattr(source, ROTARY, None)
    if plain is None or hasattr(plain, "of_adaptkit"):
        return
    generator = torch.Generator(device).manual_seed(0)
    q, k = (torch.randn(2, heads, 8, 64, generator=generator, device=device).bfloat16() for heads in (4, 2))
    angles = torch.randn(1, 8, 32, generator=generator, device=device)
    cos, sin = (torch.cat([part, part], -1).bfloat16() for part in (angles.cos(), angles.sin()))
    try:
        expected = plain(q.clone(), k.clone(), cos, sin)
    except (TypeError, RuntimeError, AttributeError):
        return  # It takes something else.
    found = kernels.rotate(q.clone(), k.clone(), cos, sin)
    if not all(_close(one, other) for one, other in zip(expected, found, strict=True)):
        return

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        there = q.device.type == device.type and not has_no_values(q)  # A plan runs on tensors that hold nothing.
        if not (there and is_fusible(q, cos, args, kwargs)):
            result: tuple[Tensor, Tensor] = plain(q, k, cos, sin, *args, **kwargs)
            return result
        return kernels.rotate(q, k, cos, sin)

    rotate.of_adaptkit = True  # type: ignore[attr-defined]
    setattr(source, ROTARY, rotate)
