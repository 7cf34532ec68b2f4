"""One label a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adaptkit.strategy import JSON
from adaptkit.task import IGNORE_INDEX, Best
from adaptkit.tasks._examples import name_problem
from adaptkit.tasks._labels import balanced_weights
from adaptkit.tasks.classification.confusion import ConfusionMatrix
from adaptkit.tasks.classification.named import NamedTarget
from adaptkit.tasks.classification.target import Figures

if TYPE_CHECKING:
    from torch import Tensor


class SingleLabel(NamedTarget):
    """Cross-entropy over the labels.

    Args:
        labels: See `NamedTarget`.
        balanced: Whether every class counts alike in the loss, however rare it is.
    """

    kind = "single"
    best = Best("accuracy")

    def __init__(self, labels: Sequence[str] | None = None, *, balanced: bool = False) -> None:
        super().__init__(labels)
        self._balanced = balanced

    def problem(self, value: Any) -> tuple[str, str] | None:
        """Returns what is wrong with a label; a list is never one label."""
        if isinstance(value, list):
            return "is a list", "write one string or whole number; with task.kind: multi every row has a list"
        return name_problem(value)

    def parse(self, value: Any) -> str:
        """Returns the name."""
        return str(value)

    def names(self, label: str) -> tuple[str]:
        """Returns the name alone."""
        return (label,)

    def encode(self, label: str) -> int:
        """Returns the index of the output."""
        return self.outputs.index(label)

    def show(self, encoded: int) -> str:
        """Returns the name."""
        return self.outputs[encoded]

    def collate(self, labels: Sequence[JSON]) -> Tensor:
        """Returns int64 indices ``(batch,)``, -100 where a row has none."""
        import torch

        return torch.tensor([IGNORE_INDEX if label is None else label for label in labels], dtype=torch.int64)

    def known(self, labels: Tensor) -> Tensor:
        """Returns which rows have a label."""
        return labels != IGNORE_INDEX

    def count(self, labels: Tensor) -> float:
        """Returns the rows that have a label, or with balanced classes the sum of their weights."""
        labels = labels[self.known(labels)]
        weights = self._weights(labels)
        return float(labels.numel() if weights is None else weights[labels].sum())

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the summed cross-entropy in nats."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, labels, self._weights(labels), reduction="sum", ignore_index=IGNORE_INDEX)

    def _weights(self, like: Tensor) -> Tensor | None:
        """Returns float32 weights ``(classes,)`` on the device of ``like``; None where all are 1."""
        if not self._balanced:
            return None
        import torch

        return torch.tensor(balanced_weights(self.counts), dtype=torch.float32, device=like.device)

    def figures(self) -> Figures:
        """Returns a collector of accuracy, macro F1 and Matthews correlation."""
        return ConfusionMatrix(len(self.outputs))

    def decode(self, logits: Tensor) -> list[dict[str, JSON]]:
        """Returns ``{"label": name, "scores": {name: probability}}`` for each row."""
        return [
            {"label": self.outputs[row.index(max(row))], "scores": dict(zip(self.outputs, row, strict=True))}
            for row in logits.softmax(dim=-1).tolist()
        ]
