"""Clashes on purpose: its twin registers the same name."""

from adaptkit import hookimpl
from adaptkit.strategy import Strategy, StrategyOptions


class TwinA(Strategy[StrategyOptions]):
    name = "twin"

    def adapt(self, model, context):
        return model


class OnlyA(TwinA):
    name = "only-a"


@hookimpl
def adaptkit_register_strategies(register):
    register(TwinA)
    register(OnlyA)
