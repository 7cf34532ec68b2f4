"""What counts as out of memory, and what is left of an attempt that ran out of it."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from adaptkit.training.splitting import attempt, is_out_of_memory


def test_a_real_allocation_that_fails_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_other_errors_are_not(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) == is_one


def test_an_attempt_that_fails_frees_what_it_held() -> None:
    held: list[weakref.ref[Tensor]] = []

    def fail() -> None:
        activation = torch.zeros(3, requires_grad=True) * 2
        held.append(weakref.ref(activation))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    assert attempt(fail) is None
    assert held[0]() is None


def test_an_error_of_another_kind_is_raised() -> None:
    def fail() -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        attempt(fail)
