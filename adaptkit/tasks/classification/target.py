"""The contract between text classification and what it predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from adaptkit.errors import Problem
from adaptkit.strategy import JSON
from adaptkit.task import Best

if TYPE_CHECKING:
    from torch import Tensor

# Where a problem of the training rows as a whole is.
TRAIN = "data.train"
Kind: TypeAlias = Literal["single", "multi", "regression"]


@dataclass(frozen=True)
class Example:
    """One row of a classification data set.

    Attributes:
        text: What is classified; of another type than a string only where the row is a problem.
        pair: The second text of a pair, or None.
        label: As `Target.parse` gave it; None where the row has none.
        where: Of the row.
    """

    text: str
    pair: str | None
    label: Any
    where: str


class Figures(ABC):
    """Collects figures batch by batch, without keeping logits."""

    @abstractmethod
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Takes float32 logits ``(rows, outputs)`` and the rows' labels, all of them known."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Returns the figures by name."""


class Target(ABC):
    """What is predicted of a text: reads labels, learns from those of training, and knows loss, figures and answers.

    Attributes:
        kind: What a recipe calls it.
        best: The figure that chooses the best checkpoint.
        outputs: Names of the head's outputs, in their order.
    """

    kind: ClassVar[Kind]
    best: ClassVar[Best]
    outputs: list[str]

    # -- labels as the rows have them ----------------------------------------------------------------

    @abstractmethod
    def problem(self, value: Any) -> tuple[str, str] | None:
        """Returns what is wrong with a label that is not null, and what to do; None: nothing is."""

    @abstractmethod
    def parse(self, value: Any) -> Any:
        """Returns the label that a good value stands for."""

    @abstractmethod
    def learn(self, train: Sequence[Example]) -> list[Problem]:
        """Learns from the training rows, and returns what is wrong with their labels as a whole."""

    def unseen(self, examples: Sequence[Example], split: str) -> list[Problem]:
        """Returns what held-out rows are labelled with and no training row is."""
        return []

    def foreign(self, examples: Sequence[Example]) -> list[Problem]:
        """Returns what later rows are labelled with and the head cannot say."""
        return []

    @abstractmethod
    def state(self) -> dict[str, JSON]:
        """Returns what was learned, as JSON."""

    @abstractmethod
    def load_state(self, state: Mapping[str, JSON]) -> None:
        """Takes back what `state` gave."""

    @abstractmethod
    def facts(self) -> list[str]:
        """Returns what a person should know of the training labels."""

    # -- labels as the model has them ----------------------------------------------------------------

    @abstractmethod
    def encode(self, label: Any) -> JSON:
        """Returns the label that `collate` takes."""

    @abstractmethod
    def show(self, encoded: Any) -> str:
        """Returns, for a person, the label that `encode` gave."""

    @abstractmethod
    def collate(self, labels: Sequence[JSON]) -> Tensor:
        """Returns the labels of a batch, ``(batch, …)``; None: the row has none."""

    @abstractmethod
    def known(self, labels: Tensor) -> Tensor:
        """Returns which rows have a label, bool ``(batch,)``."""

    @abstractmethod
    def count(self, labels: Tensor) -> float:
        """Returns what the summed loss of a batch is to be divided by."""

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of float32 logits ``(batch, outputs)``, summed over the rows that have a label."""

    @abstractmethod
    def figures(self) -> Figures:
        """Returns an empty collector."""

    @abstractmethod
    def decode(self, logits: Tensor) -> list[dict[str, JSON]]:
        """Returns one readable prediction a row of float32 logits ``(batch, outputs)``."""
