"""Clashes on purpose: its twin registers the same name."""

from adaptkit import hookimpl
from adaptkit.strategy import Strategy, StrategyOptions


class TwinB(Strategy[StrategyOptions]):
    name = "twin"

    def adapt(self, model, context):
        return model


@hookimpl
def adaptkit_register_strategies(register):
    register(TwinB)
