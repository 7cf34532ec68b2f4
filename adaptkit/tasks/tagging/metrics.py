"""Loss and figures of tagging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from adaptkit.errors import DataError
from adaptkit.task import IGNORE_INDEX, Metrics
from adaptkit.tasks.tagging.entities import EntityCounts

if TYPE_CHECKING:
    from torch import Tensor, nn


def tag_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns float32 logits of shape ``(batch, seq, tags)``, without those of virtual tokens in front."""
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "words")}
    logits: Tensor = model(**inputs).logits
    return logits[:, -batch["input_ids"].shape[1] :].float()


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns a scalar from logits ``(batch, seq, tags)`` and labels ``(batch, seq)``."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=IGNORE_INDEX)


class TaggingMetrics(Metrics):
    """Loss, token accuracy and the figures of entities.

    Args:
        tags: Names, in the order of the logits.
        entities: Counts entities; None where the tags mark none.
    """

    def __init__(self, tags: Sequence[str], entities: EntityCounts | None) -> None:
        self._tags, self._entities = tags, entities
        self._loss, self._right, self._count = 0.0, 0, 0

    def update(self, model: nn.Module, batch: Mapping[str, Tensor]) -> None:
        """Takes one batch; words without a tag are passed over."""
        logits, labels = tag_logits(model, batch), batch["labels"]
        known, predicted = labels != IGNORE_INDEX, logits.argmax(dim=-1)
        self._loss += summed_loss(logits, labels).item()
        self._right += int((predicted == labels)[known].sum())
        self._count += int(known.sum())
        if self._entities is not None:
            for row in range(len(labels)):
                pair = (self._names(indices[row][known[row]]) for indices in (labels, predicted))
                self._entities.update(*pair)

    def _names(self, indices: Tensor) -> list[str]:
        return [self._tags[index] for index in indices.tolist()]

    def compute(self) -> dict[str, float]:
        """Returns ``loss`` in nats a word and ``token_accuracy``; where tags mark entities ``precision`` and so on.

        Raises:
            DataError: No word had a tag.
        """
        if not self._count:
            raise DataError("no row has tags, so nothing can be measured", fix="add tags")
        figures = {"loss": self._loss / self._count, "token_accuracy": self._right / self._count}
        return figures if self._entities is None else {**figures, **self._entities.compute()}
