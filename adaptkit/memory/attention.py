"""Attention as a GPU computes it, on tensors without values: by kernels that keep no scores, or with all scores."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

OPERATOR = "adaptkit::planned_attention"
FLASH_HEAD = 256  # the largest head of the flash kernel
FLASH_TILE = 128  # to whose multiple its backward pass rounds sequences
BIAS_TILE = 16  # to whose multiple the gradient of a bias is rounded; transformers/cuda/attention_backward.cu, alignTo


def attention(
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
    """Stands in for `scaled_dot_product_attention` on a GPU, under the autocast of a device.

    No kernel takes a mask whose last stride is not 1 (aten/src/ATen/native/transformers/sdp_utils_cpp.h,
    ``check_last_dim_stride_equals_1_dense``), as transformers 5.17 makes one of T5's positions (5.23 no longer).
    """
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    if attn_mask is None:
        return _fused(query, key, value, None)
    bias = _bias(attn_mask, query)
    if attn_mask.stride(-1) != 1:
        return _with_scores(query, key, value, bias, dropout_p, enable_gqa=enable_gqa)
    # Its gradient is one for every head of every row; the sum over them is autograd's.
    return _fused(query, key, value, bias.expand(*query.shape[:3], key.shape[2]) if bias.requires_grad else bias)


def _bias(mask: Tensor, query: Tensor) -> Tensor:
    """Returns a mask as the kernels read it: in the dtype of the query, a copy where it is boolean."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask.logical_not(), -math.inf)
    return mask.to(query.dtype)


def _with_scores(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float, *, enable_gqa: bool
) -> Tensor:
    """Attention in fp32 that keeps its scores.

    As aten/src/ATen/native/transformers/attention.cpp, ``_scaled_dot_product_attention_math``: query and key are copied
    to be scaled, and autocast is off in it.
    """
    with torch.autocast(query.device.type, enabled=False):
        wide, wide_key, wide_value = query.float(), key.float(), value.float()
        scaled = wide * 1.0
        if enable_gqa:
            groups = query.shape[1] // key.shape[1]
            wide_key, wide_value = (part.repeat_interleave(groups, dim=1) for part in (wide_key, wide_value))
        scores = (scaled @ (wide_key.transpose(-1, -2) * 1.0)).add_(bias)
        weights = functional.dropout(torch.softmax(scores, dim=-1), dropout)
        return (weights @ wide_value).to(query.dtype)


def _fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    output: Tensor = fused_attention(query, key, value, bias)[0]
    return output


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
    of_bias = _gradient_of(bias) if bias is not None and ctx.needs_input_grad[3] else None
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), of_bias


def _gradient_of(bias: Tensor) -> Tensor:
    columns = -(-bias.shape[-1] // BIAS_TILE) * BIAS_TILE
    return bias.new_empty(*bias.shape[:-1], columns)[..., : bias.shape[-1]]


fused_attention.register_autograd(_backward, setup_context=_save)
