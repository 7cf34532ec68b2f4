"""What does not fit into memory at once is tried again in smaller pieces.

A pass that ran out of memory leaves traces: part of a gradient, random numbers drawn, buffers written. Whoever
repeats it starts from where it began.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from adaptkit.errors import FitError
from adaptkit.training.rng import rng_state, set_rng_state

T = TypeVar("T")
# As torch says it where it raises no torch.OutOfMemoryError.
MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory")
ADVICE = (
    "lower data.max_length, set training.gradient_checkpointing to true, or take a smaller base or one in nf4; "
    "`adaptkit plan RECIPE` shows what takes the memory"
)


class DoesNotFitError(Exception):
    """A micro-batch ran out of memory; never shown to a person.

    Attributes:
        index: Its place in the step.
    """

    def __init__(self, index: int) -> None:
        super().__init__(f"micro-batch {index} does not fit into memory")
        self.index = index


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that the memory of a device, or the host's, has run out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def attempt(action: Callable[[], T]) -> T | None:
    """Returns what an action returns, or None where it ran out of memory; what it held is then free again."""
    try:
        return action()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # The error is gone by now, and with it the frames that held the activations.
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    return None


def does_not_fit(what: str, where: str | None = None) -> FitError:
    """Returns the error that ends a run.

    Args:
        what: One that cannot be made smaller: a row.
        where: In the run.
    """
    return FitError(f"{what} does not fit into memory", where=where, fix=ADVICE)


class Beginning:
    """Where the passes of a step begin, so that they can begin again: random numbers and buffers, no gradient.

    Args:
        model: What is passed. Which of its buffers a pass in training writes to (running statistics) shows in the
            first pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._written = list(model.buffers())
        self._known = False

    def keep(self) -> None:
        """Takes it down."""
        self._rng = rng_state()
        self._values = [buffer.clone() for buffer in self._written]

    def passed(self) -> None:
        """Is told that the passes are done: what they wrote to is known from now on."""
        if not self._known:
            pairs = zip(self._written, self._values, strict=True)
            written = [(buffer, value) for buffer, value in pairs if not torch.equal(buffer, value)]
            self._written, self._values = [buffer for buffer, _ in written], [value for _, value in written]
            self._known = True

    def restore(self) -> None:
        """Goes back to it."""
        set_rng_state(self._rng)
        with torch.no_grad():
            for buffer, value in zip(self._written, self._values, strict=True):
                buffer.copy_(value)
        self._model.zero_grad(set_to_none=True)
