"""A base model with a head that gives one vector of logits per row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn

from adaptkit.errors import ModelError
from adaptkit.models.heads.new_head import (
    LinearHead,
    has_native_head,
    load_backbone,
    load_native_head,
    with_linear_head,
)
from adaptkit.task import BaseModel

if TYPE_CHECKING:
    from adaptkit.models.base.source import ModelSource
    from adaptkit.models.precision import Numerics

Pooling: TypeAlias = Literal["auto", "native", "cls", "mean", "last"]
# Keys of sentence-transformers' 1_Pooling/config.json.
SENTENCE_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


class PooledClassifier(LinearHead):
    """A backbone, a pooling over its last hidden states, and a linear classifier.

    Args:
        backbone: Gives ``last_hidden_state`` of shape ``(batch, seq, hidden)``.
        pooling: ``mean`` over real tokens, ``cls`` (the first token) or ``last`` (the last real token).
        num_labels: Rows of the classifier; its logits are of shape ``(batch, num_labels)``.
        dropout: Before the classifier.
    """

    def __init__(self, backbone: nn.Module, pooling: Pooling, num_labels: int, dropout: float) -> None:
        super().__init__(backbone, num_labels, dropout)
        self.pooling = pooling

    def reduce(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pools ``(batch, seq, hidden)`` to ``(batch, hidden)``."""
        if self.pooling == "mean":
            weights = mask.unsqueeze(-1).to(torch.float32)
            return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
        if self.pooling == "cls":
            return hidden[:, 0]
        positions = torch.arange(mask.shape[1], device=mask.device)
        return hidden[torch.arange(len(hidden), device=mask.device), (mask * positions).argmax(1)]


def load_classifier(
    source: ModelSource,
    *,
    numerics: Numerics,
    seed: int,
    labels: Sequence[str],
    pooling: Pooling,
    dropout: float,
) -> BaseModel:
    """Loads a base and gives it a classification head whose weights are a function of `seed` alone.

    Args:
        source: Which base.
        numerics: Storage of its weights.
        seed: Of the new head.
        labels: Names, in the order of the logits.
        pooling: How token features become one vector; see `default_pooling` for ``auto``.
        dropout: Before the classifier of a pooled head.

    Raises:
        ModelError: The base cannot be loaded, or has no native classification head and one was asked for.
    """
    from transformers import AutoModelForSequenceClassification

    if pooling == "auto":
        pooling = default_pooling(source)
    if pooling == "native" and not has_native_head(AutoModelForSequenceClassification, source):
        raise ModelError(
            f"transformers has no classification model for {source.config.model_type!r}",
            where="task.pooling",
            allowed="auto, cls, mean, last",
            fix="leave task.pooling out",
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if pooling == "native":
            return load_native_head(AutoModelForSequenceClassification, source, numerics, labels)
        head = PooledClassifier(load_backbone(source, numerics), pooling, len(labels), dropout)
        return with_linear_head(head, source, numerics)


def default_pooling(source: ModelSource) -> Pooling:
    """Returns the pooling of a base for which the recipe names none.

    As the base was trained, where it says so (sentence encoders). Else for an encoder-decoder the mean over its
    encoder, as Sentence-T5 does (arXiv:2108.08877). Else the head class that transformers has for the
    architecture, and where it has none, the last token of a decoder or the mean over an encoder.
    """
    from transformers import AutoModelForSequenceClassification

    trained = trained_pooling(source.spec.name)
    if trained is not None:
        return trained
    if source.family == "encoder-decoder":
        return "mean"
    if has_native_head(AutoModelForSequenceClassification, source):
        return "native"
    return "last" if source.family == "decoder" else "mean"


def trained_pooling(name: str) -> Pooling | None:
    """Returns the pooling that a sentence encoder says it was trained with; None: it says nothing."""
    try:
        settings = json.loads((Path(name) / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(settings, dict):
        return None
    return next((pooling for key, pooling in SENTENCE_POOLINGS.items() if settings.get(key) is True), None)
