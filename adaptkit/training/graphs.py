"""Passes that are recorded once and played back (CUDA graphs, https://pytorch.org/docs/stable/notes/cuda.html).

A fast GPU is done with a pass of a few thousand tokens before Python has asked for all of its thousands of kernels. A
pass whose shape has come a few times is therefore recorded: forward, loss and backward. Played back it does the same
operations on the same addresses, without Python.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from adaptkit.models.efficiency.recomputation import draws_at_random
from adaptkit.models.replacing import replaced
from adaptkit.strategy import Strategy
from adaptkit.training.in_backward import InBackward

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from adaptkit.training.batches import TrainingBatches

Batch: TypeAlias = Mapping[str, Tensor]
Key: TypeAlias = tuple[Any, ...]
Pass: TypeAlias = Callable[[dict[str, Tensor], Tensor], Tensor]

PASSES_BEFORE = 3  # of a shape: they compile kernels, and a shape that hardly comes again is not worth a recording
LOOKED_AT = 256  # steps, for what shapes come again
MOST = 4  # recordings; each holds the gradients of all that trains
SHARE = 0.25  # of the parameters that may train: a recording has a gradient of its own for each
MASK, POSITIONS = "attention_mask", "position_ids"


@dataclass(frozen=True)
class Recording:
    """A pass that can be played back.

    Attributes:
        graph: What is done.
        inputs: Where it reads the batch.
        count: Where it reads what the loss is divided by, a scalar.
        loss: Where it leaves the loss, a scalar.
        gradients: Where it leaves the gradient of each parameter.
    """

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    count: Tensor
    loss: Tensor
    gradients: dict[nn.Parameter, Tensor]

    def play(self, batch: Batch, count: float) -> Tensor:
        """Takes a batch through the pass, adds to the gradients, and returns the loss."""
        for name, place in self.inputs.items():
            place.copy_(batch[name], non_blocking=True)
        self.count.fill_(count)
        earlier = {parameter: parameter.grad for parameter in self.gradients if parameter.grad is not None}
        self.graph.replay()
        for parameter, gradient in self.gradients.items():
            parameter.grad = earlier[parameter].add_(gradient) if parameter in earlier else gradient
        return self.loss.clone()


class Recorder:
    """Takes batches through passes, from the third of a shape on through a recorded one.

    Args:
        parameters: What trains.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        self._seen: Counter[Key] = Counter()
        self._recordings: dict[Key, Recording] = {}
        self._pool: Any = None
        self.why_not: str | None = None

    def run(self, batch: Batch, count: float, passes: int, take: Pass) -> Tensor | None:
        """Returns the loss of a batch, its gradient accumulated; None: the pass is not recorded, take it yourself.

        Args:
            batch: On the host, page-locked.
            count: What the loss is divided by.
            passes: Of the step, by which other losses are divided.
            take: Takes a batch on the device through the pass, the count a scalar there.
        """
        batch = without_idle_mask(batch)
        key = (passes, *((name, *tensor.shape) for name, tensor in sorted(batch.items())))
        self._seen[key] += 1
        if key not in self._recordings and (
            self.why_not is not None or self._seen[key] <= PASSES_BEFORE or len(self._recordings) == MOST
        ):
            return None
        if key not in self._recordings and not self._record(key, batch, count, take):
            return None
        self._keep_gradients()
        return self._recordings[key].play(batch, count)

    def _keep_gradients(self) -> None:
        """Copies gradients out of the memory of the recordings, which a pass that is played back may write over.

        They share it, and give the right values only in the order in which they were recorded: one that is played after
        a later one uses for its activations what the later one left its gradients in.
        """
        for parameter in self._parameters:
            gradient, recordings = parameter.grad, self._recordings.values()
            if gradient is not None and any(gradient is one.gradients.get(parameter) for one in recordings):
                parameter.grad = gradient.clone()

    def forget(self) -> bool:
        """Drops what is recorded, with its memory, until the shapes come again; False: there was nothing."""
        had_any = bool(self._recordings)
        self._recordings.clear()
        self._pool = None
        return had_any

    def stop(self) -> bool:
        """Does so for good."""
        self.why_not = self.why_not or "the memory was needed"
        return self.forget()

    def _record(self, key: Key, batch: Batch, count: float, take: Pass) -> bool:
        device = self._parameters[0].device
        inputs = {name: tensor.to(device, copy=True) for name, tensor in batch.items()}
        divisor = torch.tensor(count, dtype=torch.float32, device=device)
        aside = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        torch.cuda.synchronize(device)
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()  # The stream of a recording gets its own.
        torch.cuda.empty_cache()  # A recording has memory of its own; what passes have used so far is idle from now on.
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            with _single_rows(batch), _recording(graph, self._pool, device):
                loss = take(inputs, divisor)
            gradients = {p: p.grad for p in self._parameters if p.grad is not None}
        except RuntimeError as error:
            self.why_not = str(error).strip().partition("\n")[0]
            return False
        finally:
            for parameter, gradient in zip(self._parameters, aside, strict=True):
                parameter.grad = gradient
        self._recordings[key] = Recording(graph, inputs, divisor, loss, gradients)
        return True


@contextmanager
def _recording(graph: torch.cuda.CUDAGraph, pool: Any, device: torch.device) -> Iterator[None]:
    """Records what is asked of the GPU; after an error all is as if nothing had been recorded.

    An error that ends a recording leaves torch 2.11 on its stream, with its memory, and with a random number generator
    that refuses to draw (https://github.com/pytorch/pytorch/pull/180395 has the memory).
    """
    stream = torch.cuda.current_stream(device)
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            yield
    except BaseException:
        torch.cuda.set_stream(stream)
        with suppress(RuntimeError):  # It was ended in order.
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
        with torch.cuda.graph(torch.cuda.CUDAGraph()):  # One that ends well lets the generator draw again.
            torch.zeros(1, device=device)
        raise


def without_idle_mask(batch: Batch) -> Batch:
    """Leaves an attention mask out that masks nothing: models then need no mask at all."""
    if MASK in batch and bool(batch[MASK].all()):
        return {name: tensor for name, tensor in batch.items() if name != MASK}
    return batch


@contextmanager
def _single_rows(batch: Batch) -> Iterator[None]:
    """Says to transformers, where it is so, that each sequence of a batch is one row without padding.

    Otherwise it would look into masks and positions. While a pass is recorded it cannot look, and makes a mask for the
    worst case, with which attention takes several times as long.
    """
    from transformers import masking_utils

    answers = {"find_packed_sequence_indices": None, "is_tracing": False}
    if MASK in batch or POSITIONS in batch or not all(hasattr(masking_utils, name) for name in answers):
        yield
        return
    with replaced(masking_utils, **{name: partial(_say, answer) for name, answer in answers.items()}):
        yield


def _say(answer: Any, *_: Any, **__: Any) -> Any:
    return answer


def recorder(model: nn.Module, strategy: Strategy[Any], optimizer: Optimizer, device: torch.device) -> Recorder | None:
    """Returns a recorder for passes that can be played back; None: they cannot."""
    if device.type != "cuda" or isinstance(optimizer, InBackward) or not can_be_recorded(model, strategy):
        return None
    return Recorder([parameter for parameter in model.parameters() if parameter.requires_grad])


def can_be_recorded(model: nn.Module, strategy: Strategy[Any]) -> bool:
    """Returns whether passes of a model could be played back on a GPU.

    They cannot where random numbers are drawn, the strategy acts within a step, so much trains that a second copy of
    the gradients would be felt, or the host has to know what a layer computes, as LLM.int8() the columns with outliers.
    """
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    acts = any(
        getattr(type(strategy), name) is not getattr(Strategy, name)
        for name in ("before_step", "after_step", "extra_loss")
    )
    too_many = sum(size for size, trains in sizes if trains) > SHARE * sum(size for size, _ in sizes)
    looks = any(type(module).__name__ == "Linear8bitLt" for module in model.modules())
    return not (acts or too_many or looks or draws_at_random(model))


def recordings(batches: TrainingBatches, steps: int) -> int:
    """Returns how many passes a run will have recorded, each with gradients of its own, by the shapes that it meets."""
    recurring = sum(times > PASSES_BEFORE for times in batches.shapes(min(steps, LOOKED_AT)).values())
    return min(recurring, MOST)
