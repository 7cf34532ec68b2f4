"""Full fine-tuning: every parameter trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptkit.strategy import AdaptContext, Capabilities, Family, Strategy, StrategyOptions

if TYPE_CHECKING:
    from torch import nn


class FullOptions(StrategyOptions):
    """`full` has no options."""


class Full(Strategy[FullOptions]):
    """Trains every parameter of the base and the head."""

    name = "full"
    Options = FullOptions
    capabilities = Capabilities(quantized_base=False, changes_base=True, mergeable=True, starts_as_base=True)

    def learning_rate(self, family: Family) -> float:
        """Returns 5e-5 for encoders (the highest of BERT's grid, arXiv:1810.04805), 2e-5 for others."""
        return 5e-5 if family == "encoder" else 2e-5

    def adapt(self, model: nn.Module, context: AdaptContext) -> nn.Module:
        """Makes all parameters trainable."""
        return model.requires_grad_(True)

    def merge(self, model: nn.Module) -> nn.Module:
        """Returns the model: there is nothing to fold."""
        return model
