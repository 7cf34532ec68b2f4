"""Applying a strategy to a base model: the part that is the same for every strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptkit.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from adaptkit.strategy import AdaptContext, Strategy
    from adaptkit.task import BaseModel


def adapt_model(strategy: Strategy[Any], base: BaseModel, context: AdaptContext) -> nn.Module:
    """Freezes the base, lets the strategy adapt it, and makes sure that what trains can train.

    New parameters train unless the strategy opts out, and every trainable parameter is fp32, whatever the
    base's precision: steps of a small learning rate vanish in bf16.

    Raises:
        ModelError: Nothing trains, or a quantised tensor would have to.
    """
    base.module.requires_grad_(False)
    try:
        model = strategy.adapt(base.module, context)
    except RuntimeError as error:
        if "floating point" not in str(error):
            raise
        raise ModelError(
            f"the strategy {strategy.name!r} trains tensors that are stored as {base.precision}",
            where="model.precision",
            fix="set model.precision to bf16 or fp32, or choose a strategy that leaves the base frozen; "
            "its author declares this with Capabilities(quantized_base=False)",
        ) from error
    if strategy.trains_new_parameters:
        for name in context.new_parameters:
            base.module.get_parameter(name).requires_grad_(True)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ModelError(
            f"the strategy {strategy.name!r} leaves nothing to train",
            fix=f"its options match no parameter of this model; `adaptkit strategies {strategy.name}` explains them",
        )
    for parameter in trainable.values():
        parameter.data = parameter.data.float()
    _widen_norms(model)
    return model


def _widen_norms(model: nn.Module) -> None:
    """Stores a layer norm as a whole in fp32 where a part of it trains: on a CPU it takes no two precisions at once."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and any(parameter.requires_grad for parameter in module.parameters()):
            module.float()
