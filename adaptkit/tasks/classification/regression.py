"""A number a text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptkit.data.problems import kind_of
from adaptkit.errors import Problem
from adaptkit.strategy import JSON
from adaptkit.task import Best
from adaptkit.tasks.classification.target import TRAIN, Example, Figures, Target

if TYPE_CHECKING:
    from torch import Tensor


class Regression(Target):
    """Squared error of one output, on labels of mean 0 and standard deviation 1.

    So learning rates mean the same whatever the unit of the labels.

    Attributes:
        mean: Of the training labels.
        deviation: Standard deviation of the training labels.
        range: The lowest and the highest training label.
    """

    kind = "regression"
    best = Best("mse", higher_is_better=False)

    def __init__(self) -> None:
        self.outputs = ["value"]
        self.mean, self.deviation = 0.0, 1.0
        self.range = (0.0, 0.0)

    def problem(self, value: Any) -> tuple[str, str] | None:
        """Returns what is wrong with a number."""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return f"is {kind_of(value)}, not a number", "write a number"
        number = as_number(value)
        if number is None:
            return (
                f"is {value!r}, not a number",
                "write a number, with a point before the decimals; names of classes go with task.kind: single",
            )
        return None if math.isfinite(number) else (f"is {value!r}", "write a finite number, or remove the row")

    def parse(self, value: Any) -> float:
        """Returns the number."""
        return float(value)

    def learn(self, train: Sequence[Example]) -> list[Problem]:
        """Learns mean and deviation. A number that never changes teaches nothing."""
        values = [example.label for example in train if example.label is not None]
        if not train:
            return [Problem("there are no training rows", TRAIN, "rows with different numbers", "check the file")]
        if len(set(values)) == 1:
            fix = "check the label column"
            return [Problem(f"every training row has the label {values[0]:g}", TRAIN, "different numbers", fix)]
        if values:
            self.mean, self.deviation = statistics.fmean(values), statistics.pstdev(values)
            self.range = (min(values), max(values))
        return []

    def state(self) -> dict[str, JSON]:
        """Returns mean, deviation and range of the training labels."""
        return {"mean": self.mean, "deviation": self.deviation, "range": list(self.range)}

    def load_state(self, state: Mapping[str, JSON]) -> None:
        """Takes back what `state` gave."""
        self.mean, self.deviation = float(state["mean"]), float(state["deviation"])
        lowest, highest = state["range"]
        self.range = (float(lowest), float(highest))

    def facts(self) -> list[str]:
        """Returns where the training labels lie."""
        lowest, highest = self.range
        spread = f"mean {self.mean:.4g}, standard deviation {self.deviation:.4g}"
        return [f"labels: numbers from {lowest:.4g} to {highest:.4g}, {spread}"]

    def encode(self, label: float) -> float:
        """Returns how many standard deviations a label lies above the mean."""
        return (label - self.mean) / self.deviation

    def show(self, encoded: float) -> str:
        """Returns the number that a row has."""
        return f"{encoded * self.deviation + self.mean:.4g}"

    def collate(self, labels: Sequence[JSON]) -> Tensor:
        """Returns float32 ``(batch,)``, NaN where a row has none."""
        import torch

        return torch.tensor([math.nan if label is None else label for label in labels], dtype=torch.float32)

    def known(self, labels: Tensor) -> Tensor:
        """Returns which rows have a label."""
        return ~labels.isnan()

    def count(self, labels: Tensor) -> float:
        """Returns the rows that have a label."""
        return float(self.known(labels).sum())

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the summed squared error, in squared standard deviations."""
        known = self.known(labels)
        return (logits[known, 0] - labels[known]).square().sum()

    def figures(self) -> Figures:
        """Returns a collector of errors and correlations."""
        return RegressionFigures(self.deviation)

    def decode(self, logits: Tensor) -> list[dict[str, JSON]]:
        """Returns ``{"value": number}`` for each row, in the unit of the training labels."""
        return [{"value": output * self.deviation + self.mean} for output in logits[:, 0].tolist()]


class RegressionFigures(Figures):
    """Two numbers a row, which the rank correlation needs.

    Args:
        deviation: What one unit of the model is in the unit of the labels.
    """

    def __init__(self, deviation: float) -> None:
        self._deviation = deviation
        self._predicted: list[float] = []
        self._true: list[float] = []

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds rows: logits ``(rows, 1)`` and labels ``(rows,)``."""
        self._predicted += logits[:, 0].tolist()
        self._true += labels.tolist()

    def compute(self) -> dict[str, float]:
        """Returns ``mse`` and ``mae`` in the unit of the labels, ``pearson`` and ``spearman``."""
        import torch

        predicted, true = torch.tensor([self._predicted, self._true], dtype=torch.float64)
        error = (predicted - true) * self._deviation
        return {
            "mse": float(error.square().mean()),
            "mae": float(error.abs().mean()),
            "pearson": correlation(predicted, true),
            "spearman": correlation(ranks(predicted), ranks(true)),
        }


def as_number(value: str | int | float) -> float | None:
    """Returns a number, which may be infinite, or None where there is none."""
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def correlation(one: Tensor, other: Tensor) -> float:
    """Returns Pearson's correlation of two vectors; 0 where one of them never changes, which has none."""
    import torch

    if (one == one[0]).all() or (other == other[0]).all():
        return 0.0
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1])


def ranks(values: Tensor) -> Tensor:
    """Returns the rank of each value, counted from 1; equal values share their mean rank."""
    import torch

    inverse: Tensor
    counts: Tensor
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    mean_rank = counts.cumsum(0).double() - (counts - 1) / 2
    return mean_rank[inverse]
