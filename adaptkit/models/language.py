"""Language models: loading them, and running them where a label is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from adaptkit.models.loading import load_model
from adaptkit.task import IGNORE_INDEX, BaseModel

if TYPE_CHECKING:
    from adaptkit.models.precision import Numerics
    from adaptkit.models.source import ModelSource

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


def label_logits(model: nn.Module, batch: Mapping[str, Tensor], kind: LanguageModelKind) -> LabelLogits:
    """Runs a model on a batch, its output layer only where there is a label.

    Args:
        model: The adapted model; one with virtual tokens gives logits for them too, in front.
        batch: ``labels`` ``(batch, seq)``, -100 where nothing is learned; all else goes to the model. Labels of
            ``causal`` stand where their token stands and are predicted one place before.
        kind: Of the model.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    labels = batch["labels"]
    if kind == "causal":
        labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], dim=1)
    if kind == "seq2seq":
        inputs["decoder_input_ids"] = decoder_inputs(model, labels)
    options = {} if kind == "masked" else {"use_cache": False}
    wanted = labels != IGNORE_INDEX
    logits, output = _logits_where(wanted, model, {**inputs, **options})
    return LabelLogits(logits.float(), labels[wanted], _router_loss(model, output))


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


def _logits_where(wanted: Tensor, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
    """Returns logits ``(wanted, vocabulary)`` and the whole output.

    A vocabulary is far wider than a hidden state: where only some tokens have a label, computing the others'
    logits would be most of the work and of the memory. So the output layer is handed the wanted hidden states
    alone; a model without such a layer computes all, and the wanted ones are taken then.
    """
    narrowed = False

    def narrow(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        nonlocal narrowed
        hidden = arguments[0]
        if hidden.ndim != 3 or len(hidden) != len(wanted) or hidden.shape[1] < wanted.shape[1]:
            return None
        narrowed = True
        return (hidden[:, -wanted.shape[1] :][wanted].unsqueeze(0), *arguments[1:])

    output_layer: Any = getattr(model, "get_output_embeddings", lambda: None)()
    handle = None if output_layer is None else output_layer.register_forward_pre_hook(narrow)
    try:
        output = model(**inputs)
    finally:
        if handle is not None:
            handle.remove()
    logits = output.logits
    return (logits.flatten(0, -2) if narrowed else logits[:, -wanted.shape[1] :][wanted]), output


def _router_loss(model: nn.Module, output: Any) -> Tensor | None:
    """Returns the load balancing loss of a mixture of experts, where ``output_router_logits`` asks for it."""
    loss: Tensor | None = getattr(output, "aux_loss", None)
    coefficient = getattr(getattr(model, "config", None), "router_aux_loss_coef", None)
    return None if loss is None or coefficient is None else coefficient * loss
