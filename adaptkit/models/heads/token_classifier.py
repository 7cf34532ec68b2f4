"""A base model with a head that gives one vector of logits per token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

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

# What configs call the dropout in front of a head, or of the whole model; the first that there is counts.
DROPOUTS = ("classifier_dropout", "hidden_dropout_prob", "dropout_rate", "dropout")


def load_token_classifier(source: ModelSource, *, numerics: Numerics, seed: int, labels: Sequence[str]) -> BaseModel:
    """Loads a base and gives it a head over its tokens, whose weights are a function of `seed` alone.

    The head is the one that transformers has for the architecture, else a linear layer on the last hidden
    states. An encoder-decoder always has the latter, on its encoder: T5's own begins with weights of standard
    deviation 1, and so with a loss far above that of guessing.

    Args:
        source: Which base.
        numerics: Storage of its weights.
        seed: Of the new head.
        labels: Names, in the order of the logits.

    Raises:
        ModelError: The base cannot be loaded.
    """
    from transformers import AutoModelForTokenClassification

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if source.family != "encoder-decoder" and has_native_head(AutoModelForTokenClassification, source):
            return load_native_head(AutoModelForTokenClassification, source, numerics, labels)
        head = LinearHead(load_backbone(source, numerics), len(labels), _dropout(source.config))
        return with_linear_head(head, source, numerics)


def _dropout(config: Any) -> float:
    values = (getattr(config, name, None) for name in DROPOUTS)
    return next((float(value) for value in values if isinstance(value, int | float)), 0.0)
