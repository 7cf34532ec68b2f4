"""Trains the biases alone (BitFit, Ben Zaken et al., 2022)."""

from adaptkit import hookimpl
from adaptkit.strategy import Strategy, StrategyOptions


class Bias(Strategy[StrategyOptions]):
    name = "bias"

    def adapt(self, model, context):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
        return model


@hookimpl
def adaptkit_register_strategies(register):
    register(Bias)
