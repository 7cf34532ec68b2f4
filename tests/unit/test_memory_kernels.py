"""What a plan for a GPU counts where the GPU's kernels allocate otherwise than the CPU's."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from adaptkit.memory.fused import rotations
from adaptkit.memory.stand_ins import kernels_of
from adaptkit.memory.tracker import StorageTracker

MODE = FakeTensorMode(allow_non_fake_inputs=True)
GPU = torch.device("cuda")
BATCH, HEADS, ROWS, SIZE = 2, 4, 256, 32
SCORES = BATCH * HEADS * ROWS * ROWS


def kept(run: Any, *tensors: Tensor) -> int:
    """Returns the bytes that stay alive for the backward pass, beside the tensors that it is given."""
    watched = StorageTracker(MODE, torch.device("cpu"), lambda tensor: "all")
    with kernels_of(GPU, emulated=True), MODE, watched:
        output = run(*tensors)
        held = sum(watched.live.values())
        output.sum().backward()
    return held


def fake(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = True) -> Tensor:
    with MODE:
        return torch.empty(shape, dtype=dtype, requires_grad=grad)


def heads() -> Tensor:
    return fake(BATCH, ROWS, HEADS, SIZE).transpose(1, 2).detach().requires_grad_()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dropout_on_a_gpu_keeps_a_byte_for_each_element(dtype: torch.dtype) -> None:
    states = fake(1000, dtype=dtype)
    output = 1000 * dtype.itemsize
    assert kept(lambda x: functional.dropout(x, 0.1), states) == output + 1000
    assert kept(lambda x: functional.dropout(x * 1.0, 0.1, training=False), states) == output
    assert kept(lambda x: torch.nn.Dropout(0.1)(x), states) == output + 1000


def test_a_mask_whose_last_stride_is_not_1_has_no_fused_kernel() -> None:
    mask = fake(BATCH, ROWS, ROWS, HEADS, grad=False).permute(0, 3, 1, 2)
    assert mask.stride(-1) == HEADS

    def attend(bias: Tensor) -> int:
        states = heads()
        return kept(lambda x: functional.scaled_dot_product_attention(x, x, x, attn_mask=bias, dropout_p=0.1), states)

    with MODE:
        contiguous = mask.contiguous()
    fused, plain = attend(contiguous), attend(mask)
    assert fused < 2 * SCORES
    assert plain > (4 + 4 + 1) * SCORES  # probabilities in fp32, before and behind dropout, and what was dropped


def test_a_mask_that_trains_gets_its_gradient_from_the_fused_kernel() -> None:
    bias = fake(1, HEADS, ROWS, ROWS)
    states = heads()
    held = kept(lambda x: functional.scaled_dot_product_attention(x, x, x, attn_mask=bias), states)
    assert held < 2 * SCORES  # the mask in bf16, and the output
    assert bias.grad is not None
    assert bias.grad.shape == bias.shape


@pytest.mark.parametrize("method", [False, True])
def test_a_sum_under_autocast_needs_no_copy_in_fp32(method: bool) -> None:
    watched = StorageTracker(MODE, torch.device("cpu"), lambda tensor: "all")
    states = fake(1000, grad=False)
    with kernels_of(GPU, emulated=True), MODE, watched, torch.autocast("cpu", torch.bfloat16):
        watched.mark("sum")
        total = states.sum() if method else torch.sum(states)
        watched.mark("end")
    assert total.dtype == torch.float32
    assert sum(watched.intervals[-1].peak.values()) == 4


def test_rotary_positions_are_planned_as_fused_only_where_a_run_calls_the_kernel() -> None:
    def plain(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        return q * cos + q * sin, k * cos + k * sin

    source: Any = ModuleType("modelling")
    source.apply_rotary_pos_emb = plain
    cos = fake(1, 1, ROWS, SIZE, grad=False)

    def turned(states: Tensor, **options: Any) -> tuple[str, bool]:
        """Returns the operation that made the result, and whether it is in the memory of what was turned."""
        with rotations([source]), MODE:
            q, _ = source.apply_rotary_pos_emb(states, states, cos, cos, **options)
        return q.grad_fn.name(), q.untyped_storage()._cdata == states.untyped_storage()._cdata

    fused = "_RotationBackward"
    assert turned(heads()) == (fused, True)
    assert turned(heads(), unsqueeze_dim=1) == ("AddBackward0", False)  # ModernBERT calls it so
    assert turned(fake(BATCH, HEADS, ROWS, SIZE, dtype=torch.float32)) == ("AddBackward0", False)
    packed = fake(BATCH, ROWS, 3, HEADS, SIZE)
    assert turned(packed[:, :, 0].transpose(1, 2)) == (
        fused,
        False,
    )  # a slice is not contiguous: a copy of it is turned
    assert source.apply_rotary_pos_emb is plain
