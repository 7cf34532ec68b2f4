"""What is played back is what the operation would have given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from adaptkit.memory.device import allocated_bytes
from adaptkit.memory.replay import Replay
from adaptkit.memory.tracker import Interval, StorageTracker

aten: Any = torch.ops.aten
Call = Callable[[], tuple[Any, tuple[Any, ...], dict[str, Any]]]


def call(func: Any, *args: Any, **kwargs: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    return func, args, kwargs


def shape(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(sizes, dtype=dtype)


def twice(tensor: Tensor) -> tuple[Tensor, Tensor]:
    return tensor, tensor


HALF = torch.bfloat16
CALLS: dict[str, Call] = {
    "add": lambda: call(aten.add.Tensor, shape(4, 8), shape(8)),
    "add-itself": lambda: call(aten.add.Tensor, *twice(shape(4, 8))),
    "to-fp32": lambda: call(aten._to_copy.default, shape(4, 8, dtype=HALF), dtype=torch.float32),
    "integer-and-float": lambda: call(aten.mul.Tensor, shape(4, dtype=torch.int64), 1.0),
    "matrices": lambda: call(aten.mm.default, shape(4, 8), shape(3, 8).t()),
    "view": lambda: call(aten.view.default, shape(4, 8), [2, 16]),
    "unsafe-view": lambda: call(aten._unsafe_view.default, shape(4, 8), [2, 16]),
    "view-of-a-view": lambda: call(aten.transpose.int, shape(4, 8, 2)[1:], 0, 2),
    "other-dtype": lambda: call(aten.view.dtype, shape(4, 8), HALF),
    "conjugate": lambda: call(aten._conj.default, shape(4, dtype=torch.complex64)),
    "views": lambda: call(aten.split.Tensor, shape(4, 8), 3, 1),
    "in-place": lambda: call(aten.add_.Tensor, shape(4, 8), shape(8)),
    "in-place-on-a-view": lambda: call(aten.zero_.default, shape(4, 8)[:, 2:]),
    "out": lambda: call(aten.add.out, shape(4), shape(4), out=shape(4)),
    "out-is-read": lambda: call(aten.add.out, *twice(shape(4)), out=shape(4)),
    "several": lambda: call(aten.native_layer_norm.default, shape(4, 8), [8], shape(8), None, 1e-5),
    "random": lambda: call(aten.native_dropout.default, shape(4, 8), 0.1, True),
    "strides": lambda: call(aten.empty_like.default, shape(4, 8, 2).permute(2, 0, 1)),
    "lists": lambda: call(aten._foreach_mul.Scalar, [shape(4), shape(8, 2)], 2.0),
    "lists-in-place": lambda: call(aten._foreach_add_.List, [shape(4)], [shape(4)], alpha=2),
    "lookup": lambda: call(aten.embedding.default, shape(16, 4), shape(2, 3, dtype=torch.int64)),
    "operator": lambda: call(torch.ops.adaptkit_tests.turned.default, shape(2, 3, 4)),
    "larger": lambda: call(aten.resize_.default, shape(4), [16]),
    "as-large": lambda: call(aten.resize_.default, shape(16), [16]),
    "other-storage": lambda: call(aten.set_.source_Tensor, shape(4), shape(4)),
}


@torch.library.custom_op("adaptkit_tests::turned", mutates_args=())
def turned(states: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError


@turned.register_fake
def _turned(states: Tensor) -> tuple[Tensor, Tensor]:
    return states.new_empty(states.shape[::-1]).permute(*reversed(range(states.ndim))), states.new_empty(3)


def told(args: Any, result: Any) -> list[Any]:
    """Returns all that is known of arguments and results, and which of them are or share the same."""
    tensors: list[Tensor] = []
    tree_map_only(Tensor, tensors.append, (args, result))
    return [
        (
            *(tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.device),
            *(tensor.is_conj(), tensor.untyped_storage().nbytes()),
            [other is tensor for other in tensors],
            [other.untyped_storage()._cdata == tensor.untyped_storage()._cdata for other in tensors],
        )
        for tensor in tensors
    ]


@pytest.mark.parametrize("name", CALLS)
def test_what_is_played_back_is_what_the_operation_gives(name: str) -> None:
    found = []
    with FakeTensorMode() as mode:
        replay = Replay(mode)
        for run in (lambda func, args, kwargs: func(*args, **kwargs), replay.run, replay.run):
            func, args, kwargs = CALLS[name]()
            result = run(func, args, kwargs)
            found.append((type(result), told((args, kwargs), result)))
    assert found[0] == found[1] == found[2]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The operations that were not played back."""
    found: list[Any] = []
    dispatch: Any = FakeTensorMode.dispatch

    def counted(mode: FakeTensorMode, func: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(func)
        return dispatch(mode, func, *args, **kwargs)

    monkeypatch.setattr(FakeTensorMode, "dispatch", counted)
    return found


@pytest.mark.parametrize("name", CALLS)
def test_what_cannot_be_made_again_runs_every_time(name: str, ran: list[Any]) -> None:
    with FakeTensorMode() as mode:
        replay = Replay(mode)
        replay.run(*CALLS[name]())
        again = CALLS[name]()
        ran.clear()
        replay.run(*again)
    assert len(ran) == (name in ("conjugate", "larger", "as-large", "other-storage"))


def test_calls_that_give_other_results_are_told_apart() -> None:
    with FakeTensorMode() as mode:
        replay = Replay(mode)
        whole, first, second, third = shape(4, dtype=torch.int64), shape(4), shape(4), shape(4)
        assert replay.run(aten.add.Tensor, (whole, 1), {}).dtype == torch.int64
        assert replay.run(aten.add.Tensor, (whole, 1.0), {}).dtype == torch.float32
        for target in (first, second, third):
            assert replay.run(aten.add.out, (first, second), {"out": target}) is target
        other = first.view(4)
        for target in (first, other):
            assert replay.run(aten.add.out, (first, other), {"out": target}) is target


def test_tensors_without_strides_are_left_to_the_operation() -> None:
    with FakeTensorMode() as mode:
        replay = Replay(mode)
        for _ in range(2):
            sparse = replay.run(aten._to_sparse.default, (shape(4, 8),), {})
            assert sparse.layout is torch.sparse_coo
            assert replay.run(aten.add.Tensor, (sparse, sparse), {}).shape == (4, 8)


class ViewOfTheSecond:
    """Stands for an operator of another package."""

    tags = ()

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        return second.view(-1)


def test_a_view_is_of_the_argument_that_the_operation_looks_at() -> None:
    with FakeTensorMode() as mode:
        replay, operator = Replay(mode), ViewOfTheSecond()
        one, other = shape(2, 2), shape(2, 2)
        for first, second in ((one, one.view(2, 2)), (one, other), (other, one)):
            result = replay.run(operator, (first, second), {})
            assert result.untyped_storage()._cdata == second.untyped_storage()._cdata


def test_what_depends_on_values_is_not_made_up() -> None:
    with FakeTensorMode() as mode:
        replay = Replay(mode)
        for _ in range(2):
            with pytest.raises(DynamicOutputShapeException):
                replay.run(aten.nonzero.default, (shape(4),), {})


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, states: Tensor) -> Tensor:
        heads = self.norm(states).view(2, 16, 2, 4).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        states = states + attended.transpose(1, 2).reshape(states.shape)
        return states + nn.functional.dropout(self.down(nn.functional.gelu(self.up(states))), 0.1)


def step(blocks: int, *, recomputed: bool) -> list[Interval]:
    """Returns what was alive during a step of a small model."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    tracker = StorageTracker(
        mode,
        torch.device("cpu"),
        lambda tensor: str(tensor.dtype),
        allocated=partial(allocated_bytes, torch.device("cuda")),
    )
    with mode, tracker, torch.autocast("cpu", dtype=torch.bfloat16):
        model = nn.Sequential(*(Block() for _ in range(blocks)))
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(2):
            states = torch.empty(2, 16, 8)
            for block in model:
                tracker.mark("forward")
                states = checkpoint(block, states, use_reentrant=False) if recomputed else block(states)
            tracker.mark("backward")
            states.float().sum().backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        tracker.mark("end")
    return tracker.intervals


@pytest.mark.parametrize("recomputed", [False, True])
def test_what_is_alive_is_the_same_to_the_byte(recomputed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    played = step(3, recomputed=recomputed)
    monkeypatch.setattr(Replay, "run", lambda self, func, args, kwargs: func(*args, **kwargs))
    assert played == step(3, recomputed=recomputed)


def test_more_of_equal_blocks_run_nothing_new(ran: list[Any]) -> None:
    """But for what makes their weights, and the optimizer's lists, which are longer."""
    counts = []
    for blocks in (4, 8):
        ran.clear()
        step(blocks, recomputed=True)
        counts.append(len([func for func in ran if "uniform" not in str(func)]))
    assert counts[1] - counts[0] < 40


def test_masks_of_tokens_by_tokens_have_no_values() -> None:
    """Each block makes one of its own: 80 times 8 MiB, and more in the backward pass."""
    real = torch.ones(2, 1, 2048, dtype=torch.bool)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, StorageTracker(mode, torch.device("cpu"), lambda tensor: ""):
        mask = real[:, None] & real[..., None]
        assert type(real.logical_not()) is Tensor
        assert type(mask.logical_not()) is FakeTensor
