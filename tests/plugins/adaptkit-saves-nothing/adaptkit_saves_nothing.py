"""Broken on purpose: what it trains is not in its state."""

from adaptkit import hookimpl
from adaptkit.strategy import Strategy, StrategyOptions


class SavesNothing(Strategy[StrategyOptions]):
    """Trains the biases and the head, and saves neither."""

    name = "saves-nothing"

    def adapt(self, model, context):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
        return model

    def state(self, model):
        return {}


@hookimpl
def adaptkit_register_strategies(register):
    register(SavesNothing)
