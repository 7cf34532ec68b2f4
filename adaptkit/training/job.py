"""What a step of the training loop touches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from adaptkit.training.in_backward import InBackward
from adaptkit.training.splitting import Beginning

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer

    from adaptkit.models.precision import Numerics
    from adaptkit.strategy import Strategy
    from adaptkit.task import Task
    from adaptkit.training.batches import Batch
    from adaptkit.training.graphs import Recorder
    from adaptkit.training.optim import LearningRate
    from adaptkit.training.saved_state import Unsaved


class Batches(Protocol):
    """Where micro-batches come from.

    Attributes:
        tokens: Padded tokens of a micro-batch at the most.
    """

    steps_per_epoch: int
    tokens: int

    def at(self, step: int) -> list[Batch]:
        """Returns the micro-batches of an optimizer step."""

    def size(self, step: int, index: int) -> int:
        """Returns the padded tokens of a step's micro-batch."""

    def shrink(self, step: int, index: int) -> bool:
        """Cuts all micro-batches to half of the size of one; False: it cannot be cut."""

    def longest(self, steps: int) -> tuple[int, int]:
        """Returns step and index of the longest micro-batch of a run of so many steps."""


def _silent(line: str) -> None:
    """Takes a line that nobody reads."""


@dataclass
class Job:
    """Everything that a step touches.

    Attributes:
        model: The adapted model, as strategies see it.
        wrapped: What batches go through: the model in the wrapper of accelerate, or with cached features.
        step: Optimizer steps done.
        checked: Names of the trainable tensors that are known to get a gradient.
        unsaved: What must stay as it is, because it is not saved; None: not watched.
        rehearsals: How many of the next steps begin with a rehearsal of the longest micro-batch: one, and another when
            the first step has made the optimizer's states.
        tell: Where a line for the person goes.
        beginning: Of the passes of a step.
        recorder: Plays passes back; None: each is taken anew.
    """

    model: nn.Module
    wrapped: nn.Module
    strategy: Strategy[Any]
    task: Task[Any]
    batches: Batches
    optimizer: Optimizer
    scheduler: LearningRate
    accelerator: Accelerator
    numerics: Numerics
    total_steps: int
    max_grad_norm: float | None
    step: int = 0
    checked: set[str] = field(default_factory=set)
    unsaved: Unsaved | None = None
    rehearsals: int = 0
    tell: Callable[[str], None] = _silent
    recorder: Recorder | None = None

    def __post_init__(self) -> None:
        self.beginning = Beginning(self.model)

    @property
    def in_backward(self) -> InBackward | None:
        """The optimizer, where it steps within the backward pass."""
        return self.optimizer if isinstance(self.optimizer, InBackward) else None

    def has_gradient(self, parameter: nn.Parameter) -> bool:
        """Returns whether the step has given a parameter a gradient."""
        return parameter.grad is not None or (self.in_backward is not None and parameter in self.in_backward.norms)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Returns what trains at present, by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def check_unsaved(self) -> None:
        """Makes sure that nothing has changed that is not saved.

        Raises:
            PluginError: The strategy has written into what it neither trains nor saves.
        """
        if self.unsaved is not None:
            self.unsaved.check(self.model)
