"""What single-label and multi-label classification share: labels are names, learned from the training rows."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adaptkit.errors import Problem
from adaptkit.strategy import JSON
from adaptkit.tasks._labels import count_line, foreign_names, ordered
from adaptkit.tasks.classification.target import TRAIN, Example, Target


class NamedTarget(Target):
    """A label is one name or several; the head has one output a name.

    Args:
        labels: All names in the order of the outputs; None: those of the training rows, sorted.

    Attributes:
        counts: Training rows of each name.
    """

    def __init__(self, labels: Sequence[str] | None = None) -> None:
        self._given = labels
        self.outputs: list[str] = []
        self.counts: list[int] = []

    @abstractmethod
    def names(self, label: Any) -> Sequence[str]:
        """Returns the names of a parsed label."""

    def learn(self, train: Sequence[Example]) -> list[Problem]:
        """Learns the names. Labels that are the same on every row teach nothing."""
        labels = [frozenset(self.names(example.label)) for example in train if example.label is not None]
        counts = Counter(name for label in labels for name in label)
        self.outputs = list(self._given or ordered(counts))
        self.counts = [counts[name] for name in self.outputs]
        if not train:
            return [Problem("there are no training rows", TRAIN, "rows of two labels or more", "check the file")]
        if len(set(labels)) == 1:
            names = " and ".join(map(repr, sorted(labels[0])))
            found = f"every training row has the label {names}" if names else "no training row has a label in its list"
            fix = "check the label column, and whether the rows were cut off from a sorted file"
            return [Problem(found, TRAIN, "two labels or more", fix)]
        return foreign_names(
            self._named(train), self.outputs, "is not in task.labels", "add it there, or remove its rows"
        )

    def unseen(self, examples: Sequence[Example], split: str) -> list[Problem]:
        """Returns names that no training row has."""
        seen = [name for name, count in zip(self.outputs, self.counts, strict=True) if count]
        if not seen:
            return []
        fix = "add training rows with it, or remove its rows"
        return foreign_names(self._named(examples), seen, f"of the {split} rows is on no training row", fix)

    def foreign(self, examples: Sequence[Example]) -> list[Problem]:
        """Returns names that the head has no output for."""
        fix = "remove the rows or the label"
        return foreign_names(self._named(examples), self.outputs, "is not one of this model's", fix)

    def _named(self, examples: Sequence[Example]) -> Iterator[tuple[str, str]]:
        for example in examples:
            if example.label is not None:
                yield from ((name, example.where) for name in self.names(example.label))

    def state(self) -> dict[str, JSON]:
        """Returns the names and their training rows."""
        return {"labels": self.outputs, "counts": self.counts}

    def load_state(self, state: Mapping[str, JSON]) -> None:
        """Takes back what `state` gave."""
        self.outputs, self.counts = list(state["labels"]), list(state["counts"])

    def facts(self) -> list[str]:
        """Returns how many training rows have which label."""
        return [count_line("label", self.outputs, self.counts)]
