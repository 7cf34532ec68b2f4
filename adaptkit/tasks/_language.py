"""What all language modelling shares: labels that are tokens, a loss in nats, figures by token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from adaptkit.errors import DataError
from adaptkit.task import IGNORE_INDEX, BaseModel, ChunkTokens, Features, LossSum, Metrics, Task, TaskOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptkit.metric import TextMetric
    from adaptkit.models.base.source import ModelSource
    from adaptkit.models.language.model import LanguageModelKind
    from adaptkit.models.precision import Numerics

# In a preview, between what is read and what is to come of it.
BECOMES = " → "
OptionsT = TypeVar("OptionsT", bound=TaskOptions)


class LanguageTask(Task[OptionsT]):
    """A task whose labels are tokens. The loss is their cross-entropy in nats, summed.

    A feature has ``input_ids`` and ``labels``, lists of token ids; -100 where nothing is learned. Labels of a
    causal or masked model stand where their token stands, one for each of ``input_ids``; those of a seq2seq
    model are a sequence of their own. A feature without ``labels`` asks for a prediction.

    Attributes:
        kind: What the model predicts.
        tokenizer: Of the base, from `load_base` on.
    """

    kind: ClassVar[LanguageModelKind]
    tokenizer: Any

    def load_base(self, source: ModelSource, numerics: Numerics, seed: int) -> BaseModel:
        """Loads the base with its own output layer over the vocabulary."""
        from adaptkit.models.language.model import load_language_model

        self.tokenizer = source.tokenizer
        return load_language_model(source, numerics, seed, self.kind)

    def text_metrics(self) -> list[type[TextMetric]]:
        """Returns the text metrics that the options name."""
        return [self.text_metric(name) for name in self.options.text_metrics()]

    def length(self, feature: Features) -> int:
        """Returns the tokens that are read and, where they are a sequence of their own, those that are written."""
        written = len(feature.get("labels", ())) if self.kind == "seq2seq" else 0
        return len(feature["input_ids"]) + written

    def collate(self, features: Sequence[Features], tokenizer: Any) -> dict[str, Tensor]:
        """Pads on the right, ``input_ids`` and ``labels`` each to its longest.

        Returns:
            int64 tensors of shape ``(batch, seq)``: ``input_ids``, ``attention_mask``, and ``labels`` unless
            the features have none.
        """
        return pad_tokens(features, tokenizer)

    def preview(self, feature: Features, tokenizer: Any) -> list[tuple[str, bool]]:
        """Returns the tokens, decoded, in runs that are learned and runs that are not; a second sequence behind →."""
        labels = feature.get("labels") or [IGNORE_INDEX] * len(feature["input_ids"])
        if self.kind == "seq2seq" and "labels" in feature:
            read = [(tokenizer.decode(feature["input_ids"]), False), (BECOMES, False)]
            return read + decoded_runs(labels, labels, tokenizer)
        return decoded_runs(feature["input_ids"], labels, tokenizer)

    def count(self, batch: Mapping[str, Tensor]) -> float:
        """Returns the label tokens that are predicted; the first of a causal sequence is not."""
        labels = batch["labels"][:, 1:] if self.kind == "causal" else batch["labels"]
        return float((labels != IGNORE_INDEX).sum())

    def locate(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Returns a batch with the places of its labels."""
        from adaptkit.models.language.model import located

        return located(batch, self.kind)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> LossSum:
        """Returns the cross-entropy in nats, summed over the label tokens."""
        from adaptkit.models.language.model import label_states

        there = label_states(model, batch, self.kind, whole=self.loss_chunk_tokens is None)
        return LossSum(there.loss(self.loss_chunk_tokens), there.router_loss)

    def metrics(self) -> Metrics:
        """Returns a collector of loss, perplexity and token accuracy."""
        return LanguageMetrics(self.kind, self.loss_chunk_tokens)


class LanguageMetrics(Metrics):
    """Loss in nats a label token, perplexity, and the share of label tokens that the model would have chosen.

    Args:
        kind: Of the model.
        loss_chunk_tokens: As `Task.loss_chunk_tokens`.
    """

    def __init__(self, kind: LanguageModelKind, loss_chunk_tokens: ChunkTokens = "auto") -> None:
        self._kind, self._chunk = kind, loss_chunk_tokens
        self._loss, self._right, self._count = 0.0, 0, 0

    def update(self, model: nn.Module, batch: Mapping[str, Tensor]) -> None:
        """Takes one batch; positions without a label are passed over."""
        from adaptkit.models.language.model import label_states

        there = label_states(model, batch, self._kind, whole=self._chunk is None)
        loss, right = there.figures(self._chunk)
        self._loss += loss.item()
        self._right += int(right)
        self._count += len(there.labels)

    def compute(self) -> dict[str, float]:
        """Returns ``loss``, ``perplexity`` (e to the loss) and ``token_accuracy``.

        Raises:
            DataError: No row had a label.
        """
        if not self._count:
            raise DataError("no row has a token to predict, so nothing can be measured", fix="give longer texts")
        loss = self._loss / self._count
        perplexity = math.exp(loss) if loss < math.log(1e300) else math.inf
        return {"loss": loss, "perplexity": perplexity, "token_accuracy": self._right / self._count}


def pad_tokens(features: Sequence[Features], tokenizer: Any) -> dict[str, Tensor]:
    """Pads ``input_ids`` and ``labels`` on the right, each to its longest.

    Returns:
        int64 tensors of shape ``(batch, seq)``: ``input_ids``, ``attention_mask``, and ``labels`` (padded with
        -100) if the first feature has them.
    """
    import torch

    def padded(rows: list[list[int]], value: int) -> Tensor:
        longest = max(len(row) for row in rows)
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows], dtype=torch.int64)

    ids = [feature["input_ids"] for feature in features]
    # Padding is masked, so any id does for a tokenizer that has none.
    batch = {
        "input_ids": padded(ids, tokenizer.pad_token_id or 0),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
    }
    if "labels" in features[0]:
        batch["labels"] = padded([feature["labels"] for feature in features], IGNORE_INDEX)
    return batch


def decoded_runs(input_ids: Sequence[int], labels: Sequence[int], tokenizer: Any) -> list[tuple[str, bool]]:
    """Returns token ids as text, in runs whose labels are all -100 or all not, each with whether it is learned."""
    pieces: list[tuple[str, bool]] = []
    before, end = "", 0
    for learned, run in groupby(labels, key=lambda label: label != IGNORE_INDEX):
        begin, end = end, end + len(list(run))
        # What a token adds to the text may begin with a space that it has not alone.
        text = tokenizer.decode(input_ids[:end])
        own = text.removeprefix(before) if text.startswith(before) else tokenizer.decode(input_ids[begin:end])
        pieces.append((own, learned))
        before = text
    return pieces
