"""Running the frozen part of a model once instead of once per epoch."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from adaptkit.task import Features, LossSum
from adaptkit.training.batches import CACHED
from adaptkit.training.evaluation import each_batch, inference

if TYPE_CHECKING:
    from adaptkit.models.precision import Numerics
    from adaptkit.strategy import FeaturePoint
    from adaptkit.task import Task


class CachedModel(nn.Module):
    """A short cut through a model: what has cached features goes straight into the module that trains.

    Args:
        model: The whole model; batches without cached features go through it.
        point: Where its frozen part ends.
    """

    def __init__(self, model: nn.Module, point: FeaturePoint) -> None:
        super().__init__()
        self.model = model
        self._point = point.module

    def forward(self, **inputs: Any) -> Any:
        """Returns an output with ``logits``."""
        cached = inputs.get(CACHED)
        if cached is None:
            return self.model(**inputs)
        return SimpleNamespace(logits=self.model.get_submodule(self._point)(cached))


def freeze_dropout(model: nn.Module, point: FeaturePoint) -> None:
    """Puts all but the trained module into eval mode: features are a function of the row alone."""
    model.eval()
    model.get_submodule(point.module).train()


def cache_features(
    model: nn.Module,
    point: FeaturePoint,
    task: Task[Any],
    features: Sequence[Features],
    tokenizer: Any,
    numerics: Numerics,
    micro_batch_tokens: int,
) -> bool:
    """Adds to every row what the trained module would be given for it.

    Returns:
        Whether it could be done: the input must be one vector per row, and the logits the module's output.
    """
    captured: list[Tensor] = []
    module = model.get_submodule(point.module)
    handle = module.register_forward_pre_hook(lambda _, arguments: captured.append(arguments[0].detach()))

    def read(batch: dict[str, Tensor]) -> LossSum:
        captured.clear()
        return task.loss(model, batch)

    try:
        with inference(model, numerics):
            for rows, _ in each_batch(read, task, features, tokenizer, numerics, micro_batch_tokens):
                if len(captured) != 1 or captured[0].shape[:1] != (len(rows),) or captured[0].ndim != 2:
                    return False
                for row, vector in zip(rows, captured[0].float().cpu().unbind(), strict=True):
                    features[row][CACHED] = vector.clone()
    finally:
        handle.remove()
    return True
