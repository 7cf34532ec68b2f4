"""LISA (Pan et al. 2024, arXiv:2403.17919): full fine-tuning of a few blocks at a time, drawn at random."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from pydantic import Field

from adaptkit import AdaptContext, Capabilities, Family, Strategy, StrategyOptions, block_stacks, hookimpl
from adaptkit.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from adaptkit import TrainingSpec


class LisaOptions(StrategyOptions):
    """How many blocks train at a time, and for how long."""

    activated_layers: int = Field(2, ge=1, description="Blocks that train at a time, in each stack, the paper's gamma.")
    interval_steps: int = Field(20, ge=1, description="Optimizer steps until others are drawn, the paper's K.")


class Lisa(Strategy[LisaOptions]):
    """Trains what is outside of the blocks always, and of the blocks a few that are drawn anew every few steps."""

    name = "lisa"
    Options = LisaOptions
    capabilities = Capabilities(quantized_base=False, changes_base=True, mergeable=True, starts_as_base=True)

    _seed: int
    _stacks: dict[str, int]

    def learning_rate(self, family: Family) -> float:
        """Returns twice the rate of full fine-tuning: in each step only some blocks move."""
        return 1e-4 if family == "encoder" else 4e-5

    def adapt(self, model: nn.Module, context: AdaptContext) -> nn.Module:
        """Makes everything trainable, for in time everything trains: the optimizer must know it.

        Raises:
            ModelError: The base has no blocks.
            RecipeError: It has fewer than are to train at a time.
        """
        self._seed, self._stacks = context.seed, {name: len(blocks) for name, blocks in block_stacks(model)}
        smallest = min(self._stacks.values())
        if self.options.activated_layers > smallest:
            raise RecipeError(
                f"strategy.activated_layers is {self.options.activated_layers}, but the base has a stack of {smallest}",
                where="strategy.activated_layers",
                allowed=f"1 to {smallest}; with {smallest}, nothing is ever frozen there",
                fix="lower it, or choose full",
            )
        return model.requires_grad_(True)

    def make_optimizer(self, groups: list[dict[str, Any]], settings: TrainingSpec) -> Optimizer | None:
        """Returns AdamW without the moments of blocks that do not train; any other optimizer keeps them."""
        if settings.optimizer != "adamw":
            return None
        from torch.optim import AdamW

        optimizer = AdamW(groups, betas=(0.9, settings.beta2), fused=True)
        optimizer.register_step_pre_hook(forget_idle)
        return optimizer

    def before_step(self, model: nn.Module, step: int) -> None:
        """Freezes all blocks but those that are drawn for the period of this step."""
        period = step // self.options.interval_steps
        for name, size in self._stacks.items():
            stack = model.get_submodule(name).requires_grad_(False)
            for index in drawn_blocks(f"{self._seed}/{name}/{period}", size, self.options.activated_layers):
                stack.get_submodule(str(index)).requires_grad_(True)

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns every parameter: there is none that never trains."""
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    def merge(self, model: nn.Module) -> nn.Module:
        """Returns the model: there is nothing to fold."""
        return model


def drawn_blocks(key: str, size: int, count: int) -> list[int]:
    """Returns ``count`` different blocks of ``size``, all equally likely: a function of the key alone."""
    generator = random.Random(key)
    return sorted(range(size), key=lambda _: generator.random())[:count]


def forget_idle(optimizer: Optimizer, *_: Any) -> None:
    """Drops the state of every parameter that has no gradient in the step that is about to be taken."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                optimizer.state.pop(parameter, None)


@hookimpl
def adaptkit_register_strategies(register: Callable[[type[Lisa]], None]) -> None:
    """Offers LISA."""
    register(Lisa)
