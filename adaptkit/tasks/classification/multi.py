"""Any number of labels a text: one yes-or-no question a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adaptkit.strategy import JSON
from adaptkit.task import IGNORE_INDEX, Best
from adaptkit.tasks._examples import name_problem
from adaptkit.tasks.classification.named import NamedTarget
from adaptkit.tasks.classification.target import Figures

if TYPE_CHECKING:
    from torch import Tensor

# Probability from which a label is given.
THRESHOLD = 0.5


class MultiLabel(NamedTarget):
    """Binary cross-entropy of every label. An empty list is a label too: none of them applies."""

    kind = "multi"
    best = Best("micro_f1")

    def problem(self, value: Any) -> tuple[str, str] | None:
        """Returns what is wrong with the labels of one row."""
        if not isinstance(value, list):
            fix = 'write a list of strings, ["a", "b"], also where there is one or none; or set task.kind to single'
            return f"is {value!r}, not a list", fix
        for name in value:
            found = name_problem(name)
            if found:
                return f"has an element that {found[0]}", "remove it from the list, or write a name in its place"
        return None

    def parse(self, value: Any) -> tuple[str, ...]:
        """Returns the names, each once."""
        return tuple(dict.fromkeys(map(str, value)))

    def names(self, label: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the names."""
        return label

    def encode(self, label: tuple[str, ...]) -> list[float]:
        """Returns 1 for each output that is a name of the row, else 0."""
        return [float(name in label) for name in self.outputs]

    def show(self, encoded: Sequence[float]) -> str:
        """Returns the names."""
        return ", ".join(name for name, given in zip(self.outputs, encoded, strict=True) if given) or "no label"

    def collate(self, labels: Sequence[JSON]) -> Tensor:
        """Returns float32 zeros and ones ``(batch, labels)``, -100 in every place where a row has none."""
        import torch

        unknown = [float(IGNORE_INDEX)] * len(self.outputs)
        return torch.tensor([unknown if label is None else label for label in labels], dtype=torch.float32)

    def known(self, labels: Tensor) -> Tensor:
        """Returns which rows have labels."""
        return labels[:, 0] != IGNORE_INDEX

    def count(self, labels: Tensor) -> float:
        """Returns the decisions: rows times labels."""
        return float(self.known(labels).sum()) * labels.shape[1]

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the binary cross-entropy in nats, summed over rows and labels."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        known = self.known(labels)
        return binary_cross_entropy_with_logits(logits[known], labels[known], reduction="sum")

    def figures(self) -> Figures:
        """Returns a collector of micro and macro F1 and of exact matches."""
        return MultiLabelFigures(len(self.outputs))

    def decode(self, logits: Tensor) -> list[dict[str, JSON]]:
        """Returns ``{"labels": [name …], "scores": {name: probability}}`` for each row."""
        scores = [dict(zip(self.outputs, row, strict=True)) for row in logits.sigmoid().tolist()]
        return [
            {"labels": [name for name, score in row.items() if score >= THRESHOLD], "scores": row} for row in scores
        ]


class MultiLabelFigures(Figures):
    """Counts of each label: right, given, true.

    Args:
        labels: How many there are.
    """

    def __init__(self, labels: int) -> None:
        import torch

        self._right, self._given, self._true = torch.zeros(3, labels, dtype=torch.float64)
        self._exact, self._rows = 0, 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds rows: logits and labels of shape ``(rows, labels)``."""
        given, true = (logits.sigmoid() >= THRESHOLD).cpu(), (labels > 0).cpu()
        self._right += (given & true).sum(0)
        self._given += given.sum(0)
        self._true += true.sum(0)
        self._exact += int((given == true).all(1).sum())
        self._rows += len(labels)

    def compute(self) -> dict[str, float]:
        """Returns ``micro_f1``, ``macro_f1`` and ``exact_match``, the share of rows with all labels right.

        F1 of a label is 2 * right / (given + true), and 0 for one that was neither given nor true.
        """
        both = self._given + self._true
        return {
            "micro_f1": float(2 * self._right.sum() / both.sum().clamp(min=1)),
            "macro_f1": float((2 * self._right / both.clamp(min=1)).mean()),
            "exact_match": self._exact / self._rows,
        }
