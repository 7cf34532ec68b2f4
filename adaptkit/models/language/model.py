"""Language models: loading them, and running them where a label is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from adaptkit.models.base.loading import load_model
from adaptkit.models.language.label_places import LabelPlaces
from adaptkit.models.language.output_head import OutputHead, run_with_head
from adaptkit.models.language.output_loss import chunk_rows, figures, summed_loss
from adaptkit.task import IGNORE_INDEX, BaseModel, ChunkTokens

if TYPE_CHECKING:
    from adaptkit.models.base.source import ModelSource
    from adaptkit.models.precision import Numerics

PLACES = "label_places"  # of a batch: where its labels are
LanguageModelKind: TypeAlias = Literal["causal", "masked", "seq2seq"]
AUTO_CLASSES: Mapping[LanguageModelKind, str] = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}


def load_language_model(source: ModelSource, numerics: Numerics, seed: int, kind: LanguageModelKind) -> BaseModel:
    """Loads a base with the output layer of a language model.

    Args:
        source: Which base.
        numerics: Storage of its weights.
        seed: Of whatever is new: all weights of a random base, else those that the files lack. BERT's
            transform in front of the output layer is one that bare encoders come without.
        kind: What the model predicts: the next token, masked tokens, or the tokens of a second sequence.

    Raises:
        ModelError: The base cannot be loaded, or is no such model.
    """
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module, missing = load_model(getattr(transformers, AUTO_CLASSES[kind]), source, numerics)
    if kind == "seq2seq":
        _set_decoder_start(module, source.tokenizer)
    return BaseModel(
        module=module,
        tokenizer=source.tokenizer,
        family=source.family,
        precision=numerics.precision,
        new_parameters=_really_new(module, missing),
        fingerprint=source.fingerprint,
    )


def _set_decoder_start(module: nn.Module, tokenizer: Any) -> None:
    """Lets the decoder begin with the padding token, as T5's does, where the config names no token."""
    config: Any = module.config
    settings: Any = module.generation_config
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    if getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = settings.decoder_start_token_id = config.pad_token_id


def _really_new(module: nn.Module, missing: list[str]) -> tuple[str, ...]:
    """Returns the missing names that are parameters, each tensor once, without those tied to one that is there."""
    absent = set(missing)
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return tuple(sorted(shared[0] for shared in names.values() if absent.issuperset(shared)))


@dataclass(frozen=True)
class LabelStates:
    """What a language model knows where there is a label, before its output layer.

    Attributes:
        states: ``(labels, hidden)``.
        labels: Token ids, ``(labels,)``.
        head: Makes logits of states.
        router_loss: Scalar of a mixture of experts that is told to give one, weighted as its config says, or None.
    """

    states: Tensor
    labels: Tensor
    head: OutputHead
    router_loss: Tensor | None

    def rows(self, loss_chunk_tokens: ChunkTokens) -> int:
        """Returns of how many labels logits may exist at the same time, as `Task.loss_chunk_tokens` says."""
        return chunk_rows(loss_chunk_tokens or "auto", self.head.vocabulary)

    def loss(self, loss_chunk_tokens: ChunkTokens) -> Tensor:
        """Returns the cross-entropy in nats, summed over the labels, with gradient."""
        return summed_loss(self.states, self.labels, self.head, self.rows(loss_chunk_tokens))

    def figures(self, loss_chunk_tokens: ChunkTokens) -> tuple[Tensor, Tensor]:
        """Returns the summed cross-entropy, without gradient, and how many labels have the largest logit."""
        return figures(self.states, self.labels, self.head, self.rows(loss_chunk_tokens))


@dataclass(frozen=True)
class LabelLogits:
    """What a language model says where there is a label.

    Attributes:
        logits: float32 ``(labels, vocabulary)``.
        labels: Token ids, ``(labels,)``.
        router_loss: Scalar of a mixture of experts that is told to give one, weighted as its config says, or None.
    """

    logits: Tensor
    labels: Tensor
    router_loss: Tensor | None


def label_states(
    model: nn.Module, batch: Mapping[str, Tensor], kind: LanguageModelKind, *, whole: bool = False
) -> LabelStates:
    """Runs a model on a batch, all but its output layer.

    A vocabulary is far wider than a hidden state: where only some tokens have a label, computing the others'
    logits would be most of the work and of the memory, and even those of the labels need not exist together.

    Args:
        model: The adapted model; one with virtual tokens has states for them too, in front.
        batch: ``labels`` ``(batch, seq)``, -100 where nothing is learned; all else goes to the model, but for what
            `located` has added. Labels of ``causal`` stand where their token stands and are predicted one place before.
        kind: Of the model.
        whole: Let the model compute the logits of all labels, so that who looks at its output finds them there.
    """
    inputs: dict[str, Any] = {key: value for key, value in batch.items() if key not in ("labels", PLACES)}
    labels = _where_predicted(batch["labels"], kind)
    if kind == "seq2seq":
        inputs["decoder_input_ids"] = decoder_inputs(model, labels)
    if kind != "masked":
        inputs["use_cache"] = False
    places = LabelPlaces(batch[PLACES], *labels.shape) if PLACES in batch else LabelPlaces.of(labels)
    states, head, output = run_with_head(model, inputs, places, whole=whole)
    return LabelStates(states, labels.flatten().index_select(0, places.index), head, _router_loss(model, output))


def located(batch: Mapping[str, Tensor], kind: LanguageModelKind) -> dict[str, Tensor]:
    """Returns a batch on the host with the places of its labels: on a GPU, to count them waits for it."""
    return {**batch, PLACES: LabelPlaces.of(_where_predicted(batch["labels"], kind)).index}


def _where_predicted(labels: Tensor, kind: LanguageModelKind) -> Tensor:
    """Returns labels ``(batch, seq)`` at the places from which they are predicted."""
    if kind != "causal":
        return labels
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], dim=1)


def label_logits(model: nn.Module, batch: Mapping[str, Tensor], kind: LanguageModelKind) -> LabelLogits:
    """Runs a model on a batch, its output layer only where there is a label.

    Args:
        model: As for `label_states`.
        batch: As for `label_states`.
        kind: Of the model.
    """
    there = label_states(model, batch, kind, whole=True)
    return LabelLogits(there.states.float(), there.labels, there.router_loss)


def decoder_inputs(model: nn.Module, labels: Tensor) -> Tensor:
    """Returns the labels ``(batch, seq)`` one place later, behind the token that a decoder begins with.

    -100 becomes padding. A model that has a way of its own is asked.
    """
    own: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        shifted: Tensor = own(labels=labels)
        return shifted
    config: Any = model.config
    begin = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    return torch.cat([begin, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORE_INDEX, config.pad_token_id)], dim=1)


def _router_loss(model: nn.Module, output: Any) -> Tensor | None:
    """Returns the load balancing loss of a mixture of experts, where ``output_router_logits`` asks for it."""
    loss: Tensor | None = getattr(output, "aux_loss", None)
    coefficient = getattr(getattr(model, "config", None), "router_aux_loss_coef", None)
    return None if loss is None or coefficient is None else coefficient * loss
