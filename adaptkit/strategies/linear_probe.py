"""The frozen linear probe: the base gives features, only the head trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptkit.strategy import AdaptContext, Capabilities, Family, FeaturePoint, Strategy, StrategyOptions

if TYPE_CHECKING:
    from torch import nn


class LinearProbeOptions(StrategyOptions):
    """`linear-probe` has no options."""


class LinearProbe(Strategy[LinearProbeOptions]):
    """Trains the task's head on features of the frozen base."""

    name = "linear-probe"
    Options = LinearProbeOptions
    capabilities = Capabilities(
        tasks=frozenset({"text-classification", "token-classification"}),
        mergeable=True,
        generates=False,
        starts_as_base=True,
    )

    def learning_rate(self, family: Family) -> float:
        """Returns 1e-2: the problem is convex, and Adam's steps are of about this size per weight."""
        return 1e-2

    def adapt(self, model: nn.Module, context: AdaptContext) -> nn.Module:
        """Makes the head trainable."""
        for name in context.head_modules:
            model.get_submodule(name).requires_grad_(True)
        return model

    def frozen_features(self, model: nn.Module) -> FeaturePoint | None:
        """Returns the only module that trains, where there is just one; its input can be cached."""
        trained = {name.rpartition(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
        return FeaturePoint(trained.pop()) if len(trained) == 1 else None

    def merge(self, model: nn.Module) -> nn.Module:
        """Returns the model: the base is as it was."""
        return model
