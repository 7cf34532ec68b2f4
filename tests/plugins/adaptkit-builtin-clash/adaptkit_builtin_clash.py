"""Broken on purpose: takes the name of a built-in strategy."""

from adaptkit import hookimpl
from adaptkit.strategy import Strategy, StrategyOptions


class OtherLora(Strategy[StrategyOptions]):
    name = "lora"

    def adapt(self, model, context):
        return model


@hookimpl
def adaptkit_register_strategies(register):
    register(OtherLora)
