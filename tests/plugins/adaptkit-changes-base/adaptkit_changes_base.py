"""Broken on purpose: writes into weights of the base, which it neither trains nor saves."""

from adaptkit import hookimpl
from adaptkit.strategy import Strategy, StrategyOptions


class ChangesBase(Strategy[StrategyOptions]):
    """Trains the head, and shrinks a frozen matrix on the way."""

    name = "changes-base"

    def adapt(self, model, context):
        return model

    def after_step(self, model, step):
        frozen = [p for p in model.parameters() if not p.requires_grad and p.ndim == 2 and p.is_floating_point()]
        frozen[-1].data.mul_(0.99)


@hookimpl
def adaptkit_register_strategies(register):
    register(ChangesBase)
