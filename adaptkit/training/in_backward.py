"""An optimizer that steps within the backward pass, so that no two gradients need be in memory at once.

As soon as the gradient of a parameter is complete the parameter takes its step, and the gradient is dropped. Autograd
completes it when every use of the parameter has been differentiated, so that nothing reads the old value afterwards.
After Lv et al. 2023 (LOMO, arXiv:2306.09782) and torch's tutorial on optimizer steps in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adaptkit.errors import TrainingError

if TYPE_CHECKING:
    from adaptkit.training.batches import TrainingBatches


class InBackward(Optimizer):
    """Drives an optimizer one parameter at a time; its state is that of the optimizer, bit for bit.

    Outside of `stepping` and `dropping` gradients accumulate as ever.

    Args:
        optimizer: Keeps nothing in its groups from step to step.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.norms: dict[nn.Parameter, Tensor] = {}
        self._mode: Literal["step", "drop"] | None = None
        self._places: dict[nn.Parameter, int] = {}
        for place, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                self._places[parameter] = place
                parameter.register_post_accumulate_grad_hook(self._receive)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of the optimizer."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The state of the optimizer."""
        return self.optimizer.state

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the optimizer."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.optimizer.load_state_dict(dict(state_dict))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops gradients that were accumulated outside of the contexts."""
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Does nothing but forget the gradients' norms: every parameter has stepped."""
        self.norms.clear()

    def norm(self) -> Tensor:
        """Returns the global norm of the gradients since the last `step`, a scalar on their device."""
        return torch.linalg.vector_norm(torch.stack(list(self.norms.values()))) if self.norms else torch.zeros(())

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Inside, a backward pass is a step."""
        yield from self._in_mode("step")

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """Inside, a backward pass takes the memory of a step, and leaves nothing."""
        yield from self._in_mode("drop")

    @property
    def is_stepping(self) -> bool:
        """Whether a backward pass changes parameters."""
        return self._mode == "step"

    def _in_mode(self, mode: Literal["step", "drop"]) -> Iterator[None]:
        self._mode = mode
        try:
            yield
        finally:
            self._mode = None

    def _receive(self, parameter: nn.Parameter) -> None:
        """Takes the gradient of a parameter."""
        if self._mode is None:
            return
        if self._mode == "step":
            assert parameter.grad is not None
            self.norms[parameter] = torch.linalg.vector_norm(parameter.grad)
            self._step_alone(parameter)
        parameter.grad = None

    def _step_alone(self, parameter: nn.Parameter) -> None:
        groups = self.optimizer.param_groups
        whole = groups[self._places[parameter]]
        alone = {**whole, "params": [parameter]}
        self.optimizer.param_groups = [alone]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups
        if any(alone[key] is not whole.get(key) for key in alone if key != "params"):
            raise TrainingError(
                f"{type(self.optimizer).__name__} keeps what it learns in its parameter groups, and so cannot step one "
                "parameter at a time",
                where="training.optimizer_in_backward",
                fix="set it to false, or choose another optimizer: adamw, adamw-8bit, adafactor, sgd",
            )


def check_single_pass(batches: TrainingBatches, steps: int) -> None:
    """Makes sure that every step of a run is one forward pass: a gradient that is dropped cannot be added to.

    Raises:
        TrainingError: A step has several micro-batches.
    """
    several = next((step for step in range(steps) if batches.passes(step) > 1), None)
    if several is not None:
        raise TrainingError(
            f"step {several + 1} takes {batches.passes(several)} forward passes of at most {batches.tokens:,} tokens, "
            "but an optimizer that steps in the backward pass needs a step to be one",
            where="training.optimizer_in_backward",
            fix="raise training.micro_batch_tokens, lower training.effective_batch, or set optimizer_in_backward to "
            "false",
        )
