"""Prefix tuning: learned keys and values in front of every attention layer, everything else frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from adaptkit.strategy import AdaptContext, Capabilities, Family, Strategy, StrategyOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

# Standard deviation of `init: random`, that of BERT's and GPT-2's own new weights.
RANDOM_STD = 0.02


class PrefixTuningOptions(StrategyOptions):
    """The options of `PrefixTuning`."""

    num_virtual_tokens: int = Field(16, ge=1, le=512, description="Length of the prefix, in tokens.")
    init: Literal["activations", "random"] = Field(
        "activations",
        description="First values: the base's own keys and values for a piece of the training text, or small random "
        "numbers.",
    )


class PrefixTuning(Strategy[PrefixTuningOptions]):
    """Trains ``num_virtual_tokens`` keys and values per attention layer (Li and Liang 2021, arXiv:2101.00190).

    Unlike prompt tuning it lengthens no sequence and shifts no position or label, and it runs under gradient
    checkpointing and on a quantised base.
    """

    name = "prefix-tuning"
    Options = PrefixTuningOptions
    capabilities = Capabilities(can_disable=True)

    def learning_rate(self, family: Family) -> float:
        """Returns 2e-2 for encoders and 5e-3 for the others.

        PEFT's comparison of methods (MetaMathQA) found 5e-3 for a decoder; on a small encoder 2e-2 was clearly
        better than 5e-3.
        """
        return 2e-2 if family == "encoder" else 5e-3

    def adapt(self, model: nn.Module, context: AdaptContext) -> nn.Module:
        """Gives every attention layer a prefix of zeros; only the prefixes train."""
        from adaptkit.models.attention import attach_prefixes

        for name in attach_prefixes(model, self.options.num_virtual_tokens):
            model.get_submodule(name).requires_grad_(True)
        return model

    def initialize(self, model: nn.Module, context: AdaptContext, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Starts the prefixes from real activations, or from random numbers of the run's seed."""
        import torch

        from adaptkit.models.attention import capture_prefix, prefixes

        if self.options.init == "activations":
            capture_prefix(model, batches)
            return
        generator = torch.Generator().manual_seed(context.seed)
        with torch.no_grad():
            for prefix in prefixes(model).values():
                for parameter in prefix.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * RANDOM_STD)

    def disabled(self, model: nn.Module) -> AbstractContextManager[None]:
        """Returns a context in which the prefixes are not there."""
        from adaptkit.models.attention import disabled_prefixes

        return disabled_prefixes(model)
