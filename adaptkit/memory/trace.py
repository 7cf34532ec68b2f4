"""What a run does with a model, traced without values: the optimizer's step, a pass forward and back, an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from adaptkit.memory.device import allocated_bytes
from adaptkit.memory.fakes import address, claimed_device, give_storages, held_tensors
from adaptkit.memory.fused import rotations
from adaptkit.memory.scratch import scratch_of
from adaptkit.memory.stacks import BACKWARD, FORWARD, Stack, unroll
from adaptkit.memory.stand_ins import kernels_of
from adaptkit.memory.tracker import WORKSPACE, Parts, StorageTracker
from adaptkit.training.evaluation import eval_mode

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from adaptkit.models.precision import Numerics
    from adaptkit.task import Task

BASE, ADAPTER, GRADIENTS, OPTIMIZER = "base weights", "adapter", "gradients", "optimizer"
ACTIVATIONS, LOGITS = "activations", "logits and loss"
PARTS = (BASE, ADAPTER, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS, WORKSPACE)

Batch = Mapping[str, Tensor]


class Trace:
    """Takes a model without values through a run.

    Args:
        model: The adapted model, on the meta device; its tensors are replaced by fake ones.
        stacks: Of which it has four blocks each.
        numerics: How it computes, and on which device.
        vocabulary: Width of the logits, which are counted apart; None: they are not.
        on_host: Names of parameters that wait in the host's memory.
        fused: Modelling files whose rotary positions are fused.
    """

    def __init__(
        self,
        model: nn.Module,
        stacks: Sequence[Stack],
        numerics: Numerics,
        *,
        vocabulary: int | None = None,
        on_host: Collection[str] = (),
        fused: Sequence[ModuleType] = (),
    ) -> None:
        self._fused = list(fused)
        self._model, self._stacks, self._numerics, self._vocabulary = model, stacks, numerics, vocabulary
        self._allocated = partial(allocated_bytes, numerics.device)
        self._phase = ACTIVATIONS
        self._more = Parts()
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        device = claimed_device(numerics.device)
        self._emulated = device.type != numerics.device.type
        self._tracker = StorageTracker(
            self._mode,
            device,
            self._label,
            allocated=self._allocated,
            scratch=scratch_of(numerics.device),
        )
        with self._mode:
            give_storages(model, device)
        self._count_weights(on_host)
        self._watch_blocks()

    def optimizer_step(self, make: Callable[[], Optimizer], max_grad_norm: float | None) -> Parts:
        """Takes the optimizer's step on gradients; its states and the gradients stay.

        Args:
            make: The optimizer.
            max_grad_norm: To which the gradient is clipped.

        Returns:
            Bytes by part at the peak.
        """
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        with self._running():
            self._tracker.mark("optimizer")
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
                self._tracker.count(parameter.grad, GRADIENTS)
            if max_grad_norm is not None:
                self._phase = WORKSPACE
                torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
            self._phase = OPTIMIZER
            optimizer = make()
            optimizer.step()
            self._keep = optimizer
            self._tracker.mark("end")
        self._count_missing(optimizer)
        return unroll(self._tracker.intervals[-1:], (), self._more)

    def _count_missing(self, optimizer: Optimizer) -> None:
        """Counts gradients and states of the blocks that were taken out."""
        for stack in self._stacks:
            for parameter in stack.middle.parameters():
                if parameter.grad is not None:
                    self._more[GRADIENTS] += stack.missing * self._size(parameter.grad)
                states = getattr(optimizer, "state", {}).get(parameter, {})
                tensors = [value for value in states.values() if isinstance(value, Tensor)]
                self._more[OPTIMIZER] += stack.missing * sum(map(self._size, tensors))

    def drop_gradients(self) -> None:
        """Lets go of the gradients."""
        with self._running():
            self._model.zero_grad(set_to_none=True)
        self._more[GRADIENTS] = 0

    def training_pass(self, task: Task[Any], batch: Batch, *, keeps_gradients: bool = True) -> Parts:
        """Takes a batch forward and back.

        Args:
            task: Gives the loss.
            batch: Integers with their values.
            keeps_gradients: Whether the gradients stay until the end; else each goes when it is complete.

        Returns:
            Bytes by part at the peak.
        """
        self._model.train()
        self._keeps_gradients = keeps_gradients
        begun = len(self._tracker.intervals) + 1
        with self._running():
            self._phase = ACTIVATIONS
            self._tracker.mark("pass")
            with self._numerics_autocast():
                part = task.loss(self._model, batch)
            loss = part.total / 2.0
            if part.extra is not None:
                loss = loss + part.extra
            self._phase = WORKSPACE
            self._tracker.mark("loss")
            loss.backward()  # type: ignore[no-untyped-call]
            del loss, part
            self._tracker.mark("end")
        return unroll(self._tracker.intervals[begun:], self._stacks, self._more)

    def inference_pass(self, run: Callable[[nn.Module, Batch], Any], batch: Batch) -> Parts:
        """Takes a batch through a function of model and batch without gradients, in eval mode.

        Returns:
            Bytes by part at the peak.
        """
        begun = len(self._tracker.intervals) + 1
        with self._running(), eval_mode(self._model), torch.no_grad(), self._numerics_autocast():
            self._phase = ACTIVATIONS
            self._tracker.mark("inference")
            run(self._model, batch)
            self._tracker.mark("end")
        return unroll(self._tracker.intervals[begun:], self._stacks, self._more)

    @contextmanager
    def _running(self) -> Iterator[None]:
        kernels = kernels_of(self._numerics.device, emulated=self._emulated)
        with torch.random.fork_rng(devices=[]), kernels, rotations(self._fused), self._mode, self._tracker:
            yield

    def _numerics_autocast(self) -> Any:
        kind = "cpu" if self._emulated else self._numerics.device.type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self._numerics.bf16)

    def _label(self, tensor: Tensor) -> str:
        if self._phase == OPTIMIZER:
            return OPTIMIZER
        if self._vocabulary is not None and tensor.ndim and tensor.shape[-1] >= self._vocabulary:
            return LOGITS
        if self._phase == WORKSPACE and torch.is_grad_enabled():  # what a backward pass computes again
            return ACTIVATIONS
        return self._phase

    def _count_weights(self, on_host: Collection[str]) -> None:
        waiting = {id(self._model.get_parameter(name)) for name in on_host}
        trained = {id(parameter) for parameter in self._model.parameters() if parameter.requires_grad}
        for tensor in held_tensors(self._model):
            if id(tensor) not in waiting:
                self._tracker.count(tensor, ADAPTER if id(tensor) in trained else BASE)
        for stack in self._stacks:
            rest = (block for block in stack.blocks if block is not stack.middle)
            others = {address(tensor) for block in rest for tensor in held_tensors(block)}
            sizes = {
                address(tensor): (ADAPTER if id(tensor) in trained else BASE, self._size(tensor))
                for tensor in held_tensors(stack.middle)
                if address(tensor) not in others
            }
            for part, size in sizes.values():
                self._more[part] += stack.missing * size
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._count_gradient)  # type: ignore[no-untyped-call]

    def _count_gradient(self, parameter: Tensor) -> None:
        if not self._keeps_gradients:
            parameter.grad = None
        elif parameter.grad is not None:
            self._tracker.count(parameter.grad, GRADIENTS)

    def _size(self, tensor: Tensor) -> int:
        return self._allocated(tensor.untyped_storage().nbytes())

    def _watch_blocks(self) -> None:
        for number, stack in enumerate(self._stacks):
            for index, block in enumerate(stack.blocks):
                block.register_forward_pre_hook(self._before(number, index))
                block.register_forward_hook(self._after(number, index, last=index == len(stack.blocks) - 1))

    def _before(self, stack: int, index: int) -> Callable[..., None]:
        def mark(*_: Any) -> None:
            if self._phase == ACTIVATIONS:  # else it is computed again
                self._tracker.mark(FORWARD, stack, index)

        return mark

    def _after(self, stack: int, index: int, *, last: bool) -> Callable[..., None]:
        def begin(_: Tensor) -> None:
            self._tracker.mark(BACKWARD, stack, index)

        def mark(_: nn.Module, __: Any, output: Any) -> None:
            if self._phase != ACTIVATIONS:
                return
            states = output[0] if isinstance(output, tuple) else output
            if isinstance(states, Tensor) and states.requires_grad:
                states.register_hook(begin)  # type: ignore[no-untyped-call]
            if last:
                self._tracker.mark("behind", stack)

        return mark
