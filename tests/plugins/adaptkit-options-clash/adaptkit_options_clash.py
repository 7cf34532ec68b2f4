"""Broken on purpose: an option that is called like the key that chooses the strategy."""

from adaptkit import hookimpl
from adaptkit.strategy import Strategy, StrategyOptions


class ClashingOptions(StrategyOptions):
    name: str = "mine"


class Clashing(Strategy[ClashingOptions]):
    name = "clashing"
    Options = ClashingOptions

    def adapt(self, model, context):
        return model


@hookimpl
def adaptkit_register_strategies(register):
    register(Clashing)
