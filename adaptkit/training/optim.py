"""Optimizers by name, their parameter groups, and the learning rate over a run.

Importing this module imports no torch: names are registered when plugins load.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from adaptkit.errors import CheckpointError, Problem, RecipeError, TrainingError
from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from adaptkit.recipe import TrainingSpec

Group: TypeAlias = dict[str, Any]
Schedule: TypeAlias = Literal["linear", "cosine", "constant"]


@hookimpl
def adaptkit_register_optimizers(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """Offers the built-in optimizers."""
    register("adamw", _adamw)
    register("adamw-8bit", _adamw_8bit)
    register("paged-adamw-8bit", _paged_adamw_8bit)
    register("lion-8bit", _lion_8bit)
    register("adafactor", _adafactor)
    register("sgd", _sgd)


def _adamw(groups: list[Group], settings: TrainingSpec) -> Optimizer:
    """AdamW (arXiv:1711.05101), fused where torch can."""
    import torch

    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for p in parameters)
    return torch.optim.AdamW(groups, betas=(0.9, settings.beta2), fused=fused or None)


def _adamw_8bit(groups: list[Group], settings: TrainingSpec) -> Optimizer:
    """AdamW with 8-bit states, by bitsandbytes (arXiv:2110.02861)."""
    return _without_waiting(_bitsandbytes("adamw-8bit").AdamW8bit)(groups, betas=(0.9, settings.beta2))


def _paged_adamw_8bit(groups: list[Group], settings: TrainingSpec) -> Optimizer:
    """AdamW with 8-bit states that leave the GPU when memory is short, by bitsandbytes (arXiv:2305.14314)."""
    return _without_waiting(_bitsandbytes("paged-adamw-8bit").PagedAdamW8bit)(groups, betas=(0.9, settings.beta2))


def _lion_8bit(groups: list[Group], settings: TrainingSpec) -> Optimizer:
    """Lion (arXiv:2302.06675) with 8-bit states, by bitsandbytes."""
    # Lion has no second moment for `beta2`; its betas are the paper's (Chen et al. 2023, table 1).
    return _without_waiting(_bitsandbytes("lion-8bit").Lion8bit)(groups, betas=(0.9, 0.99))


def _adafactor(groups: list[Group], settings: TrainingSpec) -> Optimizer:
    """Adafactor (arXiv:1804.04235): factored second moments."""
    import torch

    return torch.optim.Adafactor(groups)


def _sgd(groups: list[Group], settings: TrainingSpec) -> Optimizer:
    """SGD with momentum 0.9."""
    import torch

    return torch.optim.SGD(groups, momentum=0.9)


def _bitsandbytes(name: str) -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise RecipeError(
            f"the optimizer {name!r} needs bitsandbytes, which cannot be imported: {error}",
            where="training.optimizer",
            fix="pip install bitsandbytes, or choose adamw",
        ) from error
    return bitsandbytes.optim


def _without_waiting(plain: Any) -> Callable[..., Optimizer]:
    """Returns an optimizer of bitsandbytes that waits for the GPU once a step at the most, not after each parameter.

    The kernels of a step stand in one stream, so that none needs what another has not done yet. An adapter has hundreds
    of parameters.
    """
    import torch

    from adaptkit.models.values import has_no_values

    class Unhurried(plain):  # type: ignore[misc]
        def get_state_buffer(self, p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
            # Paged memory is the GPU's driver's: a CPU has none, and a plan must not get any.
            if not p.is_cuda or has_no_values(p):
                return torch.zeros_like(p, dtype=dtype)
            buffer: Tensor = super().get_state_buffer(p, dtype)
            return buffer

        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            if not self.initialized:  # type: ignore[has-type]
                self.check_overrides()
                self.to_gpu()
                self.initialized = True
            for number, group in enumerate(self.param_groups):
                for place, parameter in enumerate(group["params"]):
                    if parameter.grad is None:
                        continue
                    if not self.state[parameter]:
                        self.init_state(group, parameter, number, place)
                    self.prefetch_state(parameter)
                    self.update_step(group, parameter, number, place)
            if self.is_paged and torch.cuda.is_available():  # States that are moved must have arrived.
                torch.cuda.synchronize()

    Unhurried.__name__ = Unhurried.__qualname__ = plain.__name__
    return cast("Callable[..., Optimizer]", Unhurried)


def decay_groups(model: nn.Module, lr: float, weight_decay: float) -> list[Group]:
    """Returns the trainable parameters in two groups: matrices with weight decay, biases and norms without.

    Args:
        model: The adapted model.
        lr: Peak learning rate of both groups.
        weight_decay: Of the parameters with two or more dimensions that are not called ``bias``.

    Returns:
        Groups for a torch optimizer; a group that would be empty is left out.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [p for name, p in trainable if _decays(name, p)]
    others = [p for name, p in trainable if not _decays(name, p)]
    groups = [
        {"params": decayed, "lr": lr, "weight_decay": weight_decay},
        {"params": others, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _decays(name: str, parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and name.rpartition(".")[2] != "bias"


def check_groups(model: nn.Module, groups: list[Group]) -> None:
    """Checks that each trainable parameter of the model stands in the groups exactly once, and nothing else.

    Raises:
        TrainingError: With one problem for each kind of mistake, naming the parameters.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trainable = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if any(not isinstance(group["params"], list | tuple) for group in groups):
        raise TrainingError(
            "an optimizer group's parameters are not a list", fix='write {"params": list(...), ...} in parameter_groups'
        )
    grouped = [parameter for group in groups for parameter in group["params"]]
    counts = Counter(id(parameter) for parameter in grouped)
    mistakes = {
        "trainable, but in no optimizer group": [name for key, name in trainable.items() if key not in counts],
        "more than once in the optimizer groups": [names.get(key, "?") for key, n in counts.items() if n > 1],
        "in an optimizer group, but frozen": [names[key] for key in counts if key in names and key not in trainable],
        "in an optimizer group, but not of the model": [
            f"a tensor of shape {tuple(parameter.shape)}" for parameter in grouped if id(parameter) not in names
        ],
    }
    fix = "parameter_groups of the strategy: each parameter with requires_grad exactly once"
    problems = [Problem(f"{what}: {_some(found)}", fix=fix) for what, found in mistakes.items() if found]
    if problems:
        raise TrainingError(problems)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Gives an optimizer the ``state_dict`` of a checkpoint.

    Large states of a paged bitsandbytes optimizer come back on the device instead of in paged memory:
    bitsandbytes pages only what it allocates itself.

    Raises:
        CheckpointError: The state is of other parameter groups.
    """
    try:
        optimizer.load_state_dict(dict(state))
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"the saved optimizer state does not belong to this model: {error}",
            fix="resume with the strategy and the optimizer that wrote the checkpoint",
        ) from error


def optimizer_name(optimizer: Optimizer) -> str:
    """Returns the class of an optimizer, that inside of accelerate's wrapper."""
    return type(getattr(optimizer, "optimizer", optimizer)).__name__


class LearningRate:
    """The learning rate of every group over a run: a function of the steps done, times the group's peak.

    Like a torch scheduler: `step` after ``optimizer.step()``. Its state is JSON, and loading it sets the
    groups' rates too, in whatever order optimizer and schedule are restored.
    """

    def __init__(self, optimizer: Optimizer, share: Callable[[int], float]) -> None:
        self._optimizer = optimizer
        self._share = share
        self._steps = 0
        self.peaks: list[float] = [group["lr"] for group in optimizer.param_groups]
        self._apply()

    def step(self) -> None:
        """Goes on to the next optimizer step."""
        self._steps += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """Returns the learning rate of each group in the coming step."""
        return [peak * self._share(self._steps) for peak in self.peaks]

    def state_dict(self) -> dict[str, Any]:
        """Returns the steps done and the groups' peaks, as JSON."""
        return {"steps": self._steps, "peaks": list(self.peaks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self._steps, self.peaks = int(state["steps"]), [float(peak) for peak in state["peaks"]]
        self._apply()

    def _apply(self) -> None:
        for group, rate in zip(self._optimizer.param_groups, self.get_last_lr(), strict=True):
            group["lr"] = rate


def make_scheduler(optimizer: Optimizer, schedule: Schedule, total_steps: int, warmup: float) -> LearningRate:
    """Returns the learning rate over a run: a linear warm-up, then what ``schedule`` says.

    The rate is above zero in every one of the steps, so that the first and the last are not wasted.

    Args:
        optimizer: Its groups hold their peak learning rates.
        schedule: ``linear`` (to 0), ``cosine`` (half a period, to 0) or ``constant``.
        total_steps: Optimizer steps of the whole run.
        warmup: Share of them with a rising rate.
    """
    warmup_steps = min(round(warmup * total_steps), total_steps - 1)

    def share(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        left = max(0.0, (total_steps - step) / (total_steps - warmup_steps))
        return {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[schedule]

    return LearningRate(optimizer, share)
