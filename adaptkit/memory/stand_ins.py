"""What a GPU's kernels allocate, in place of what the CPU's would, while a model runs without values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adaptkit.memory.attention import attention
from adaptkit.models.replacing import replaced

Names = tuple[tuple[Any, tuple[str, ...]], ...]
# Autocast on CUDA computes these in fp32, on the CPU in the dtype of their input: ATen/autocast_mode.h,
# AT_FORALL_FP32 (which copies what it reads into fp32) …
COPIED_TO_FP32: Names = (
    (functional, ("layer_norm", "group_norm", "cross_entropy", "nll_loss", "softplus", "mse_loss", "l1_loss")),
    (functional, ("smooth_l1_loss", "huber_loss", "kl_div", "binary_cross_entropy_with_logits", "cosine_similarity")),
    (torch, ("exp", "expm1", "log", "log1p", "logsumexp", "pow", "rsqrt", "reciprocal", "layer_norm")),
    (Tensor, ("exp", "expm1", "log", "log1p", "logsumexp", "pow", "__pow__", "rsqrt", "reciprocal")),
)
# … and AT_FORALL_FP32_SET_OPT_DTYPE (which asks for a result in fp32, so that a sum needs no copy).
SUMMED_IN_FP32: Names = (
    (functional, ("softmax", "log_softmax")),
    (torch, ("softmax", "log_softmax", "sum", "prod", "norm", "cumsum", "cumprod")),
    (Tensor, ("softmax", "log_softmax", "sum", "prod", "norm", "cumsum", "cumprod")),
)


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
        attend = partial(attention, "cpu" if emulated else "cuda")
        stack.enter_context(replaced(functional, scaled_dot_product_attention=attend))
        if emulated:
            stack.enter_context(replaced(functional, dropout=_dropout))
            for wrap, listed in ((_copied, COPIED_TO_FP32), (_summed, SUMMED_IN_FP32)):
                for owner, names in listed:
                    wrapped = {name: wrap(getattr(owner, name)) for name in names}
                    stack.enter_context(replaced(owner, **wrapped))
        yield


def _copied(function: Callable[..., Any]) -> Callable[..., Any]:
    def widened(*args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            args = tuple(value.float() if _is_narrow(value) else value for value in args)
        return function(*args, **kwargs)

    return widened


def _summed(function: Callable[..., Any]) -> Callable[..., Any]:
    def widened(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu") and _is_narrow(tensor) and kwargs.get("dtype") is None:
            kwargs["dtype"] = torch.float32
        return function(tensor, *args, **kwargs)

    return widened


def _is_narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout that keeps a boolean for each element; the CPU's keeps a number in the dtype of the input.

    aten/src/ATen/native/Dropout.cpp, ``is_fused_kernel_acceptable``.
    """
    if not training or p == 0:
        return input
    output: Tensor = torch.native_dropout(input, p, True)[0]
    return output
