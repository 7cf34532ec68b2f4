"""A loss or a gradient that is not a number ends a run."""

from __future__ import annotations

import math

from adaptkit.errors import TrainingError

STEADIER = "lower training.learning_rate, lengthen training.warmup, or set training.compute to fp32"


def check_finite(step: int, loss: float, norm: float = 0.0) -> None:
    """Makes sure that a step can be taken.

    Args:
        step: Steps done before it.
        loss: Of the effective batch.
        norm: Of its gradient.

    Raises:
        TrainingError: One of them is not finite.
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return
    raise TrainingError(
        f"{'the loss' if not math.isfinite(loss) else 'the gradient'} is not finite at step {step + 1}: "
        f"loss {loss}, gradient norm {norm}",
        fix=f"{STEADIER}; the last checkpoint is from before this step",
    )
