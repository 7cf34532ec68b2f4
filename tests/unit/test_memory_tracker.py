from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from adaptkit.memory.device import MIB, allocated_bytes
from adaptkit.memory.scratch import scratch_of
from adaptkit.memory.stand_ins import kernels_of
from adaptkit.memory.tracker import StorageTracker

CPU = torch.device("cpu")


def tracker(**options: Any) -> tuple[FakeTensorMode, StorageTracker]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return mode, StorageTracker(mode, CPU, lambda tensor: "all", **options)


def peak(watched: StorageTracker) -> int:
    watched.mark("end")
    return sum(watched.intervals[-1].peak.values())


def test_the_peak_is_what_was_alive_at_once() -> None:
    mode, watched = tracker()
    with mode, watched:
        watched.mark("begin")
        first = torch.empty(100)
        second = first + 1
        del first
        third = second * 2
        del second, third
    assert peak(watched) == 800
    assert sum(watched.live.values()) == 0


def test_a_view_is_no_memory() -> None:
    mode, watched = tracker()
    with mode, watched:
        tensor = torch.empty(10, 10)
        _ = tensor.t()[2:].unsqueeze(0), tensor.add_(1)
    assert watched.live["all"] == 400


def test_what_autograd_saves_lives_until_backward() -> None:
    mode, watched = tracker()
    with mode, watched:
        weight = torch.empty(10, 10, requires_grad=True)
        loss = (weight.exp() * 1.0).sum()
        held = watched.live["all"]
        loss.backward()  # type: ignore[no-untyped-call]
        del loss
    assert held == 400 + 400 + 4
    assert watched.live["all"] == 400 + 400  # the weight and its gradient


def test_sizes_that_depend_on_integers_are_exact() -> None:
    labels = torch.tensor([3, -100, -100, 5])
    mode, watched = tracker()
    with mode, watched:
        states = torch.empty(4, 8)
        chosen = states[labels != -100]
        assert chosen.shape == (2, 8)
        assert bool((labels == 5).any())
        assert torch.arange(4, device=states.device).tolist() == [0, 1, 2, 3]


def test_values_of_floats_are_none_but_can_be_read() -> None:
    mode, watched = tracker()
    with mode, watched:
        assert isinstance(float(torch.empty(3).sum()), float)


def test_storages_take_what_the_allocator_takes_for_them() -> None:
    mode, watched = tracker(allocated=partial(allocated_bytes, torch.device("cuda")))
    with mode, watched:
        small, large = torch.empty(1), torch.empty(129)
    assert watched.live["all"] == 512 + 1024
    del small, large


@pytest.mark.parametrize(
    ("size", "taken"),
    [
        (1, 512),
        (512, 512),
        (7 * MIB, 7 * MIB),
        (11 * MIB, 12 * MIB),
        (11 * MIB - 1024, 11 * MIB - 1024),
        (12 * MIB - 1, 12 * MIB),
    ],
)
def test_a_gpu_leaves_no_small_rest_of_a_large_piece(size: int, taken: int) -> None:
    assert allocated_bytes(torch.device("cuda"), size) == taken
    assert allocated_bytes(torch.device("cpu"), size) == size


def test_a_cpu_copies_what_it_converts() -> None:
    def mixed(**options: Any) -> int:
        mode, watched = tracker(**options)
        with mode, watched:
            narrow, wide = torch.empty(100, dtype=torch.bfloat16), torch.empty(100)
            watched.mark("add")
            _ = narrow + wide
        return peak(watched)

    assert mixed(scratch=scratch_of(CPU)) - mixed() == 400


@pytest.mark.parametrize("checkpointed", [False, True])
def test_attention_on_a_gpu_keeps_no_scores(checkpointed: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    def attend(states: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(states, states, states, is_causal=True)

    mode, watched = tracker()
    with kernels_of(torch.device("cuda"), emulated=True), mode, watched:
        states = torch.empty(1, 2, 4096, 64, requires_grad=True)
        watched.mark("attend")
        output = checkpoint(attend, states, use_reentrant=False) if checkpointed else attend(states)
        output.sum().backward()
    scores = 2 * 4096 * 4096 * 4
    assert peak(watched) < scores / 2


@pytest.mark.parametrize(
    ("shape", "dims", "scratch"),
    [
        ((4, 512, 5504), [0, 1], 90_177_536),  # as torch 2.11 allocates on 132 processors of 2,048 threads
        ((2048, 5504), [1], 0),
        ((16, 5504), [0], 0),
        ((4, 512, 5504), [0, 1, 2], 0),
    ],
)
def test_a_gpu_sums_rows_in_parts(shape: tuple[int, ...], dims: list[int], scratch: int) -> None:
    mode, watched = tracker(scratch=scratch_of(torch.device("cuda")))
    with mode, watched:
        tensor = torch.empty(shape)
        watched.mark("sum")
        before = sum(watched.live.values())
        made = tensor.sum(dims)
    assert peak(watched) - before == max(scratch + 4 * made.numel(), 4 * made.numel())
