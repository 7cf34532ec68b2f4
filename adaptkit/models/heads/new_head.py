"""A head on a base: transformers' own where the architecture has one, or a linear layer on its last hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adaptkit.errors import ModelError
from adaptkit.models.base.loading import load_model
from adaptkit.task import BaseModel

if TYPE_CHECKING:
    from adaptkit.models.base.source import ModelSource
    from adaptkit.models.precision import Numerics

QUANTIZED_FLAGS = ("is_loaded_in_4bit", "is_loaded_in_8bit")


class LinearHead(nn.Module):
    """A backbone and a linear layer over its last hidden states: one vector of logits a token.

    Args:
        backbone: Gives ``last_hidden_state`` of shape ``(batch, seq, hidden)``.
        num_labels: Rows of the linear layer.
        dropout: Before the linear layer.
    """

    def __init__(self, backbone: nn.Module, num_labels: int, dropout: float) -> None:
        super().__init__()
        config: Any = backbone.config
        config.num_labels = num_labels
        self.config = config
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, num_labels)
        draw_weights(self.classifier, config)

    @property
    def is_loaded_in_4bit(self) -> bool:
        """Whether the backbone is NF4; PEFT asks the model that it injects into."""
        return bool(getattr(self.backbone, "is_loaded_in_4bit", False))

    @property
    def is_loaded_in_8bit(self) -> bool:
        """Whether the backbone is int8; PEFT asks the model that it injects into."""
        return bool(getattr(self.backbone, "is_loaded_in_8bit", False))

    @property
    def device(self) -> torch.device:
        """Where the model is; PEFT asks for it."""
        return self.classifier.weight.device

    def get_input_embeddings(self) -> nn.Module:
        """Returns the backbone's token embedding."""
        embeddings: nn.Module = self.backbone.get_input_embeddings()  # type: ignore[operator]
        return embeddings

    def forward(self, attention_mask: Tensor, **inputs: Any) -> Any:
        """Returns an output with ``logits`` of shape ``(batch, seq, num_labels)``."""
        from transformers.modeling_outputs import TokenClassifierOutput

        hidden = self.backbone(attention_mask=attention_mask, **inputs).last_hidden_state
        features = self.reduce(hidden, attention_mask).to(self.classifier.weight.dtype)
        return TokenClassifierOutput(logits=self.classifier(self.dropout(features)))

    def reduce(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Returns what the linear layer reads of hidden states ``(batch, seq, hidden)``: all of them."""
        return hidden


def load_backbone(source: ModelSource, numerics: Numerics) -> nn.Module:
    """Loads the bare model; of an encoder-decoder the encoder, which reads the whole row in both directions.

    The pooler that some encoders carry is left out: nothing here would train it.
    """
    from transformers import AutoModel

    model: Any = load_model(AutoModel, source, numerics)[0]
    if source.family == "encoder-decoder":
        encoder = model.get_encoder()
        for flag in QUANTIZED_FLAGS:
            setattr(encoder, flag, getattr(model, flag, False))
        model = encoder
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None
    return model  # type: ignore[no-any-return]


def has_native_head(auto_class: Any, source: ModelSource) -> bool:
    """Returns whether transformers has a class of this kind for the architecture."""
    return type(source.config) in auto_class._model_mapping


def with_linear_head(head: LinearHead, source: ModelSource, numerics: Numerics) -> BaseModel:
    """Returns a backbone with its linear layer, which is new, as a base."""
    return _base_model(head, source, numerics, ("classifier",), ("classifier.weight", "classifier.bias"))


def load_native_head(auto_class: Any, source: ModelSource, numerics: Numerics, labels: Sequence[str]) -> BaseModel:
    """Loads transformers' own model for a task; its head is every direct child that is not the base.

    A head that comes with the base is kept where it is for the same labels. One for others is drawn again.

    Args:
        auto_class: ``AutoModelForSequenceClassification`` …; one that the architecture has.
        source: Which base.
        numerics: Storage of its weights.
        labels: Names, in the order of the logits.
    """
    names: Mapping[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    module, missing = load_model(auto_class, source, numerics, **names)
    config: Any = module.config
    # The head of a decoder takes what stands before this token for the end of a row.
    config.pad_token_id = source.tokenizer.pad_token_id
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id  # as T5's decoder begins
    prefix = getattr(module, "base_model_prefix", "")
    with_weights = {name.partition(".")[0] for name, _ in module.named_parameters()}
    head = tuple(name for name, _ in module.named_children() if name != prefix and name in with_weights)
    inside = tuple(name for name, _ in module.named_parameters() if name.partition(".")[0] in head)
    if source.random:
        missing = list(inside)
    elif not set(inside) & set(missing) and not _is_for(labels, source):
        _draw_again([module.get_submodule(name) for name in head], source, numerics)
        missing += inside
    new = tuple(name for name, _ in module.named_parameters() if name in missing)
    return _base_model(module, source, numerics, head, new)


def _is_for(labels: Sequence[str], source: ModelSource) -> bool:
    """Returns whether the base says of its head that its outputs are these labels."""
    named: Mapping[int, str] = source.config.id2label or {}
    return [named[index] for index in sorted(named)] == list(labels)


def _draw_again(parts: Sequence[nn.Module], source: ModelSource, numerics: Numerics) -> None:
    """Gives the linear layers of a head that was trained for other labels new weights.

    Raises:
        ModelError: They are quantised.
    """
    if numerics.quantized:
        raise ModelError(
            f"the base comes with a head for other labels, which is stored as {numerics.precision} and so cannot be "
            "trained",
            where=source.spec.name,
            fix="set model.precision to bf16 or fp32, or name the base without that head",
        )
    for layer in (layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear)):
        draw_weights(layer, source.config)


def draw_weights(layer: nn.Linear, config: Any) -> None:
    """Gives a linear layer new weights, as BERT's and GPT-2's are drawn, and no bias."""
    nn.init.normal_(layer.weight, std=getattr(config, "initializer_range", 0.02))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _base_model(
    module: nn.Module, source: ModelSource, numerics: Numerics, head: tuple[str, ...], new: tuple[str, ...]
) -> BaseModel:
    return BaseModel(
        module=module,
        tokenizer=source.tokenizer,
        family=source.family,
        precision=numerics.precision,
        head_modules=head,
        new_parameters=new,
        fingerprint=source.fingerprint,
    )
