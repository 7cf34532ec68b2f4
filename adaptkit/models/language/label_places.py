"""Where the labels of a batch are, and what other tensors have there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adaptkit.models.values import has_no_values
from adaptkit.task import IGNORE_INDEX


@dataclass(frozen=True)
class LabelPlaces:
    """Where the labels of a batch are.

    Attributes:
        index: Places in the flattened batch, ``(labels,)``.
        rows: Of the batch.
        length: Tokens of a row.
    """

    index: Tensor
    rows: int
    length: int

    @classmethod
    def of(cls, labels: Tensor) -> LabelPlaces:
        """Finds the labels of ``(batch, seq)`` that are not -100.

        To know their number the host waits for the device, once; before the model runs that costs next to nothing.
        Where labels have no values, because a plan is made, every place is one.
        """
        if has_no_values(labels):
            index = torch.arange(labels.numel(), device=labels.device)
        else:
            index = (labels.flatten() != IGNORE_INDEX).nonzero().squeeze(1)
        return cls(index, *labels.shape)

    def fit(self, tensor: Tensor) -> bool:
        """Whether a tensor is ``(batch, seq, size)`` of this batch, perhaps with virtual tokens in front."""
        return tensor.ndim == 3 and len(tensor) == self.rows and tensor.shape[1] >= self.length

    def pick(self, tensor: Tensor) -> Tensor:
        """Returns what a tensor that fits has where a label is, ``(labels, …)``."""
        virtual = tensor.shape[1] - self.length
        index = self.index + (self.index // self.length + 1) * virtual if virtual else self.index
        return tensor.flatten(0, 1).index_select(0, index)
