"""The contract of a text metric: a figure over pairs of texts, a generated one and the one that was wanted.

A recipe names text metrics under ``task: {metrics: [chrf, bleu]}``, where the task generates.

Importing this module imports nothing heavy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

__all__ = ["TextMetric"]


class TextMetric(ABC):
    """Collects figures pair by pair. Subclass it and set ``name``; it is made anew for every evaluation.

    It keeps sums, never the texts.

    Attributes:
        name: What a recipe calls it.
    """

    name: ClassVar[str]

    @abstractmethod
    def update(self, prediction: str, reference: str) -> None:
        """Takes one pair."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Returns the figures by name; at least one pair was taken."""
