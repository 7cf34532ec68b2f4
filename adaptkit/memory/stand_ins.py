"""What a GPU's kernels allocate, in place of what the CPU's would, while a model runs without values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adaptkit.models.replacing import replaced

# Autocast on CUDA computes these in fp32, on the CPU in the dtype of their input:
# https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-can-autocast-to-float32
IN_FP32: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (functional, ("layer_norm", "group_norm", "softmax", "log_softmax", "cross_entropy", "nll_loss", "softplus")),
    (torch, ("softmax", "log_softmax", "exp", "log", "pow", "rsqrt", "reciprocal", "sum", "prod", "norm", "cumsum")),
    (Tensor, ("softmax", "log_softmax", "exp", "log", "pow", "__pow__", "rsqrt", "sum", "prod", "norm", "cumsum")),
)
OPERATOR = "adaptkit::planned_attention"
FLASH_HEAD = 256  # the largest head of the flash kernel
FLASH_TILE = 128  # to whose multiple its backward pass rounds sequences


@contextmanager
def kernels_of(device: torch.device, *, emulated: bool) -> Iterator[None]:
    """The context in which operations allocate what they would on a device.

    Args:
        device: For which a plan is made.
        emulated: Whether the fake tensors claim to be on the CPU, because this torch knows no GPU.
    """
    if device.type != "cuda":
        yield
        return
    with ExitStack() as stack:
        # Autocast asks the driver, which there need not be.
        stack.enter_context(replaced(torch.cuda, is_bf16_supported=lambda *args, **kwargs: True))
        stack.enter_context(replaced(torch.cuda.amp.common, amp_definitely_not_available=lambda: False))
        attention = partial(_attention, "cpu" if emulated else "cuda")
        stack.enter_context(replaced(functional, scaled_dot_product_attention=attention))
        for owner, names in IN_FP32 if emulated else ():
            for name in names:
                stack.enter_context(replaced(owner, **{name: _in_fp32(getattr(owner, name))}))
        yield


def _in_fp32(function: Callable[..., Any]) -> Callable[..., Any]:
    def widened(*args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            args = tuple(_widened(value) for value in args)
        return function(*args, **kwargs)

    return widened


def _attention(
    device: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention by the fused kernels of a GPU, under the autocast of a device."""
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    if attn_mask is not None:
        attn_mask = _bias(attn_mask, query)
    if attn_mask is not None and attn_mask.requires_grad:  # T5's positions: scores are made and kept
        return _plain_attention(query, key, value, attn_mask, dropout_p, enable_gqa=enable_gqa)
    output: Tensor = fused_attention(query, key, value, attn_mask)[0]
    return output


def _widened(value: Any) -> Any:
    is_narrow = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_narrow else value


def _bias(mask: Tensor, query: Tensor) -> Tensor:
    """Returns a mask as the kernels read it: in the dtype of the query, a copy where it is boolean."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask.logical_not(), -math.inf)
    return mask.to(query.dtype)


def _plain_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float, *, enable_gqa: bool
) -> Tensor:
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    weights = torch.softmax(query @ key.transpose(-1, -2) + bias, dim=-1).to(value.dtype)
    return functional.dropout(weights, dropout) @ value


@torch.library.custom_op(OPERATOR, mutates_args=())
def fused_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention that keeps its inputs, its output and the sum of each row of scores, not the scores.

    An operator, because selective recomputation keeps the output of operators.
    """
    raise NotImplementedError("it stands in for a kernel of a GPU where tensors have no values")


@fused_attention.register_fake
def _outputs(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, heads, rows, _ = query.shape
    output = query.new_empty(batch, rows, heads, value.shape[-1]).transpose(1, 2)
    return output, query.new_empty(batch, heads, rows, dtype=torch.float32)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, bias, _, sums = ctx.saved_tensors
    rows = -(-query.shape[2] // FLASH_TILE) * FLASH_TILE
    scratch = [torch.empty_like(sums)]
    if bias is None and query.shape[-1] <= FLASH_HEAD and query.dtype != torch.float32:
        width = -(-query.shape[-1] // 32) * 32
        scratch.append(query.new_empty(*query.shape[:2], rows, width, dtype=torch.float32))
        if key.shape[1] != query.shape[1]:
            scratch += [query.new_empty(*query.shape[:2], *t.shape[2:]) for t in (key, value)]
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


fused_attention.register_autograd(_backward, setup_context=_save)
