"""LoRA-XS (Bałazy et al. 2024, arXiv:2405.17604) as a strategy of adaptkit. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from adaptkit import AdaptContext, Capabilities, Family, Strategy, StrategyOptions, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["LoraXS", "LoraXSOptions"]


class LoraXSOptions(StrategyOptions):
    """The options of `LoraXS`. ``lora_alpha`` is that of the authors' scripts."""

    r: int = Field(
        16, ge=1, description="Singular directions of each layer that are used; a layer that has fewer uses all."
    )
    lora_alpha: float = Field(16, gt=0, description="The update is scaled by lora_alpha / r.")
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        "all-linear",
        description="all-linear, or the last parts of the names of layers: [query, attention.output.dense].",
    )


class LoraXS(Strategy[LoraXSOptions]):
    """Trains an r by r matrix a layer, between frozen singular vectors of the layer's weight (arXiv:2405.17604).

    The update of a weight ``W = U S Vᵀ`` is ``A R B`` with ``A = U_r S_r`` and ``B = V_rᵀ``. R begins at zero, so that
    the first step finds the base as it is; its gradient ``Aᵀ G Bᵀ`` is not zero there, for A and B are not.
    """

    name = "lora-xs"
    Options = LoraXSOptions
    capabilities = Capabilities(mergeable=True, can_disable=True, starts_as_base=True)

    def learning_rate(self, family: Family) -> float:
        """Returns 4e-3, with which the authors tune decoders; a small encoder learned faster with it than with 1e-3."""
        return 4e-3

    def adapt(self, model: nn.Module, context: AdaptContext) -> nn.Module:
        """Puts A, R and B of zeros beside the linear layers outside the head; R trains.

        Raises:
            ModelError: ``target_modules`` names a layer that is not there.
        """
        from .layers import attach, target_layers

        names = target_layers(model, self.options.target_modules, without=context.whole_modules)
        attach(model, names, self.options.r, self.options.lora_alpha / self.options.r)
        return model

    def initialize(self, model: nn.Module, context: AdaptContext, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Takes A and B from the singular value decomposition of each weight, of a quantised one as it computes."""
        from .layers import adapted_layers, set_directions

        for layer in adapted_layers(model).values():
            set_directions(layer)

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns what trains, and A and B: the signs of singular vectors are not the same on every machine."""
        from .layers import added_buffers

        return {**super().state(model), **added_buffers(model)}

    def disabled(self, model: nn.Module) -> AbstractContextManager[None]:
        """Returns a context without the updates; the head stays as trained."""
        from .layers import disabled

        return disabled(model)

    def merge(self, model: nn.Module) -> nn.Module:
        """Adds the updates to the weights and takes A, R and B out again.

        Raises:
            ModelError: The weights are quantised.
        """
        from .layers import merge

        return merge(model)


@hookimpl
def adaptkit_register_strategies(register: Callable[[type[Strategy[Any]]], None]) -> None:
    """Offers `LoraXS`."""
    register(LoraXS)
