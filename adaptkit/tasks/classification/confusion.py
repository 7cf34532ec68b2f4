"""Classification figures from a confusion matrix, which grows by rows and never by logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptkit.tasks.classification.target import Figures

if TYPE_CHECKING:
    from torch import Tensor


class ConfusionMatrix(Figures):
    """Counts of (true, predicted) pairs.

    Attributes:
        counts: int64 of shape ``(classes, classes)``, true class by row, on the CPU.
    """

    def __init__(self, classes: int) -> None:
        import torch

        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds rows: logits ``(rows, classes)`` and class indices ``(rows,)``."""
        import torch

        classes = len(self.counts)
        cells = (labels * classes + logits.argmax(dim=-1)).cpu()
        self.counts += torch.bincount(cells, minlength=classes * classes).view(classes, classes)

    def compute(self) -> dict[str, float]:
        """Returns accuracy, macro F1 and Matthews correlation as scikit-learn does for the single rows.

        A cell is handed over as one row whose sample weight is the cell's count.
        """
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        truth, predicted = (cells.numpy() for cells in self.counts.nonzero(as_tuple=True))
        weights = self.counts[truth, predicted].numpy()
        one_class = len({*truth, *predicted}) == 1
        return {
            "accuracy": float(accuracy_score(truth, predicted, sample_weight=weights)),
            "macro_f1": float(f1_score(truth, predicted, sample_weight=weights, average="macro", zero_division=0.0)),
            # Without a second class there is nothing to correlate; scikit-learn gives 0 and warns.
            "matthews_correlation": 0.0
            if one_class
            else float(matthews_corrcoef(truth, predicted, sample_weight=weights)),
        }
