"""Which evaluation was the best so far, and whether it is still worth going on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adaptkit.strategy import JSON
from adaptkit.task import Best


@dataclass
class BestStep:
    """Follows one figure over the evaluations of a run.

    Attributes:
        rule: Which figure, and whether more of it is better.
        patience: Evaluations in a row without a better one after which to stop; None: never.
        step: Of the best evaluation; None before the first.
        metrics: Of the best evaluation.
        failures: Evaluations since the best one.
    """

    rule: Best
    patience: int | None = None
    step: int | None = None
    metrics: dict[str, float] | None = None
    failures: int = 0

    def update(self, step: int, metrics: dict[str, float]) -> bool:
        """Takes an evaluation and returns whether it is the best so far; the first of equals stays the best."""
        value, best = metrics[self.rule.metric], (self.metrics or {}).get(self.rule.metric, math.nan)
        better = value > best if self.rule.higher_is_better else value < best
        if self.step is None or better:
            self.step, self.metrics, self.failures = step, dict(metrics), 0
            return True
        self.failures += 1
        return False

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.failures >= self.patience

    def state(self) -> dict[str, JSON]:
        """Returns what a checkpoint needs."""
        return {"step": self.step, "metrics": self.metrics, "failures": self.failures}

    def load_state(self, state: Mapping[str, JSON]) -> None:
        """Takes back what `state` gave."""
        self.step, self.metrics, self.failures = state["step"], state["metrics"], state["failures"]
