"""LoReFT (Wu et al. 2024, arXiv:2404.03592) as a strategy of adaptkit. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from adaptkit import AdaptContext, Capabilities, Family, Strategy, StrategyOptions, hookimpl
from adaptkit.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["LoReFT", "LoReFTOptions"]


class LoReFTOptions(StrategyOptions):
    """The options of `LoReFT`. ``first`` and ``last`` are the p and s of the paper, f4+l4 in its notation."""

    r: int = Field(4, ge=1, description="Dimensions of the subspace in which hidden states are edited.")
    layers: Literal["all"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = Field(
        "all", description="Blocks whose output is edited: all, or their numbers, from 0: [3, 9, 18, 24]."
    )
    first: int = Field(4, ge=0, description="Positions at the beginning of each row that are edited.")
    last: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Positions at the end of each row that are edited. Default: as many as the first ones, but none "
        "where a decoder writes, for there a row has no end yet.",
    )


class LoReFT(Strategy[LoReFTOptions]):
    """Trains low-rank edits of the hidden states of the first and last positions of each row (arXiv:2404.03592).

    Behind each chosen block ``h`` becomes ``h + Rᵀ(Wh + b - Rh)``, R having orthonormal rows. R begins at random, W
    as R and b at zero, so that the first step finds the base as it is. Of an encoder-decoder the encoder is edited.
    """

    name = "loreft"
    Options = LoReFTOptions
    capabilities = Capabilities(can_disable=True, starts_as_base=True)

    def learning_rate(self, family: Family) -> float:
        """Returns 9e-4, as the authors' scripts for LLaMA do, but 4e-3 for encoders.

        Their 6e-4 for RoBERTa-base was far too slow for a small encoder.
        """
        return 4e-3 if family == "encoder" else 9e-4

    def adapt(self, model: nn.Module, context: AdaptContext) -> nn.Module:
        """Puts an edit behind each chosen block; the edits alone train, with the head.

        Raises:
            RecipeError: There is no such block, no position is edited, or last ones of a row that is being written.
            ModelError: The model has no stack of blocks that can be edited.
        """
        from .layers import attach

        attach(model, self.options.r, self.options.layers, self.options.first, self._last(context))
        return model

    def initialize(self, model: nn.Module, context: AdaptContext, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Draws R, a function of the run's seed, and begins with edits that change nothing."""
        from .layers import draw

        draw(model, context.seed)

    def disabled(self, model: nn.Module) -> AbstractContextManager[None]:
        """Returns a context without the edits; the head stays as trained."""
        from .layers import disabled

        return disabled(model)

    def _last(self, context: AdaptContext) -> int:
        """Returns how many positions at the end of a row are edited.

        A decoder that is not given a head is trained to write. In training it is not told where the prompt ends, and
        what would be the last positions of a row there are others when it writes.
        """
        first, last = self.options.first, self.options.last
        writes = context.family == "decoder" and not context.head_modules
        if writes and last:
            raise RecipeError(
                f"strategy.last is {last}, but under {context.task} a decoder writes: its rows have no end yet",
                where="strategy.last",
                allowed="0, or any number where rows are read whole: classification, encoders, encoder-decoders",
                fix="leave strategy.last out; strategy.first counts from the beginning of the prompt",
            )
        last = (0 if writes else first) if last is None else last
        if not first + last:
            raise RecipeError("no position is edited", where="strategy.first", allowed="1 or more", fix="leave it out")
        return last


@hookimpl
def adaptkit_register_strategies(register: Callable[[type[Strategy[Any]]], None]) -> None:
    """Offers `LoReFT`."""
    register(LoReFT)
