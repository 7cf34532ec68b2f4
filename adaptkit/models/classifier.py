"""A base model with a head that gives one vector of logits per row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from adaptkit.errors import ModelError
from adaptkit.models.family import family_of
from adaptkit.models.loading import base_fingerprint, load_config, load_model, load_tokenizer
from adaptkit.task import BaseModel

if TYPE_CHECKING:
    from adaptkit.recipe import ModelSpec, Precision

Pooling: TypeAlias = Literal["auto", "native", "cls", "mean", "last"]


class PooledClassifier(nn.Module):
    """A backbone, a pooling over its last hidden states, and a linear classifier.

    Args:
        backbone: Gives ``last_hidden_state`` of shape ``(batch, seq, hidden)``.
        pooling: ``mean`` over real tokens, ``cls`` (the first token) or ``last`` (the last real token).
        num_labels: Rows of the classifier.
        dropout: Before the classifier.
    """

    def __init__(self, backbone: nn.Module, pooling: Pooling, num_labels: int, dropout: float) -> None:
        super().__init__()
        config: Any = backbone.config
        config.num_labels = num_labels
        self.config = config
        self.pooling = pooling
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        nn.init.normal_(self.classifier.weight, std=getattr(config, "initializer_range", 0.02))
        nn.init.zeros_(self.classifier.bias)

    @property
    def is_loaded_in_4bit(self) -> bool:
        """Whether the backbone is NF4; PEFT asks the model that it injects into."""
        return bool(getattr(self.backbone, "is_loaded_in_4bit", False))

    @property
    def is_loaded_in_8bit(self) -> bool:
        """Whether the backbone is int8; PEFT asks the model that it injects into."""
        return bool(getattr(self.backbone, "is_loaded_in_8bit", False))

    def get_input_embeddings(self) -> nn.Module:
        """Returns the backbone's token embedding."""
        embeddings: nn.Module = self.backbone.get_input_embeddings()  # type: ignore[operator]
        return embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Any:
        """Returns an output with ``logits`` of shape ``(batch, num_labels)``."""
        from transformers.modeling_outputs import SequenceClassifierOutput

        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        pooled = self._pool(hidden, attention_mask).to(self.classifier.weight.dtype)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(pooled)))

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Reduces ``(batch, seq, hidden)`` to ``(batch, hidden)``."""
        if self.pooling == "mean":
            weights = mask.unsqueeze(-1).to(torch.float32)
            return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
        if self.pooling == "cls":
            return hidden[:, 0]
        positions = torch.arange(mask.shape[1], device=mask.device)
        return hidden[torch.arange(len(hidden), device=mask.device), (mask * positions).argmax(1)]


def load_classifier(
    spec: ModelSpec,
    *,
    precision: Precision,
    seed: int,
    labels: Sequence[str],
    pooling: Pooling,
    dropout: float,
) -> BaseModel:
    """Loads a base and gives it a classification head whose weights are a function of `seed` alone.

    Args:
        spec: Which base.
        precision: Storage of its weights.
        seed: Of the new head.
        labels: Names, in the order of the logits.
        pooling: ``native`` is the head class that transformers has for the architecture; ``auto`` takes the
            pooling that the base was trained with where it says so (sentence encoders), else ``native``.
        dropout: Before the classifier of a pooled head.

    Raises:
        ModelError: The base cannot be loaded, or cannot classify.
    """
    config = load_config(spec)
    family = family_of(config.to_dict())
    if family == "encoder-decoder":
        raise ModelError(
            f"{spec.name!r} is an encoder-decoder",
            allowed="encoders and decoders for text-classification",
            fix="choose an encoder (BERT, RoBERTa, ModernBERT, MiniLM …)",
        )
    pooling = trained_pooling(spec.name) if pooling == "auto" else pooling
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if pooling == "native":
            module, head, new = _native_head(spec, precision, labels)
        else:
            backbone = _backbone(spec, precision)
            module = PooledClassifier(backbone, pooling, len(labels), dropout)
            head = new = ("classifier",)
    return BaseModel(
        module=module,
        tokenizer=load_tokenizer(spec),
        family=family,
        precision=precision,
        head_modules=head,
        new_modules=new,
        fingerprint=base_fingerprint(spec, config),
    )


def trained_pooling(name: str) -> Pooling:
    """Returns the pooling that a sentence encoder says it was trained with, else ``native``."""
    try:
        settings = json.loads((Path(name) / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "native"
    if settings.get("pooling_mode_mean_tokens"):
        return "mean"
    return "cls" if settings.get("pooling_mode_cls_token") else "native"


def _backbone(spec: ModelSpec, precision: Precision) -> nn.Module:
    """Loads the bare model, without the pooler that some encoders carry and that nothing here would train."""
    from transformers import AutoModel

    try:
        return load_model(AutoModel, spec, precision, add_pooling_layer=False)[0]
    except TypeError:
        return load_model(AutoModel, spec, precision)[0]


def _native_head(
    spec: ModelSpec, precision: Precision, labels: Sequence[str]
) -> tuple[nn.Module, tuple[str, ...], tuple[str, ...]]:
    """Loads transformers' own classification model; its head is every direct child that is not the base."""
    from transformers import AutoModelForSequenceClassification

    model, missing = load_model(
        AutoModelForSequenceClassification,
        spec,
        precision,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    prefix = getattr(model, "base_model_prefix", "")
    with_weights = {name.partition(".")[0] for name, _ in model.named_parameters()}
    head = tuple(name for name, _ in model.named_children() if name != prefix and name in with_weights)
    new = tuple(sorted({key.rpartition(".")[0] for key in missing}))
    config: Any = model.config
    if config.pad_token_id is None:
        config.pad_token_id = load_tokenizer(spec).pad_token_id
    return model, head, new
