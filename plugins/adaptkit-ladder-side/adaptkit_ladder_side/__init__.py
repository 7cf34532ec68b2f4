"""Ladder Side-Tuning (Sung et al. 2022, arXiv:2206.06522) as a strategy of adaptkit. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pydantic import Field

from adaptkit import AdaptContext, Capabilities, Family, Strategy, StrategyOptions, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["LadderSide", "LadderSideOptions"]


class LadderSideOptions(StrategyOptions):
    """The options of `LadderSide`; the default is the paper's."""

    reduction_factor: int = Field(
        8, ge=1, description="How many times narrower than the base's hidden states the side network is."
    )


class LadderSide(Strategy[LadderSideOptions]):
    """Trains a small network beside the base, with no backward pass through it (arXiv:2206.06522).

    Of an encoder-decoder it stands beside the decoder: beside the encoder it would have to be reached through the
    decoder's cross-attention. It does not recompute activations, for the base keeps none.
    """

    name = "ladder-side"
    Options = LadderSideOptions
    capabilities = Capabilities(gradient_checkpointing=False, can_disable=True, starts_as_base=True)

    def learning_rate(self, family: Family) -> float:
        """Returns 3e-3, as the authors train beside T5-base."""
        return 3e-3

    def adapt(self, model: nn.Module, context: AdaptContext) -> nn.Module:
        """Puts the side network beside the last stack of blocks; it alone trains, with the head.

        Raises:
            ModelError: The model has no stack of blocks, one that runs more than once, or does not tell its width.
            RecipeError: ``reduction_factor`` is larger than that width.
        """
        from .layers import attach

        attach(model, self.options.reduction_factor)
        return model

    def initialize(self, model: nn.Module, context: AdaptContext, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Draws the side network's first weights, a function of the run's seed; its way back begins at zero."""
        from .layers import ladder

        ladder(model).draw(context.seed)

    def disabled(self, model: nn.Module) -> AbstractContextManager[None]:
        """Returns a context without the side network; the head stays as trained."""
        from .layers import disabled

        return disabled(model)


@hookimpl
def adaptkit_register_strategies(register: Callable[[type[Strategy[Any]]], None]) -> None:
    """Offers `LadderSide`."""
    register(LadderSide)
