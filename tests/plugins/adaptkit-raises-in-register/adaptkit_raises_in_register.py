"""Broken on purpose: registers a strategy, then raises."""

from adaptkit import hookimpl
from adaptkit.strategy import Strategy, StrategyOptions


class Half(Strategy[StrategyOptions]):
    name = "half"

    def adapt(self, model, context):
        return model


@hookimpl
def adaptkit_register_strategies(register):
    register(Half)
    raise RuntimeError("no licence found")
