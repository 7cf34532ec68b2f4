"""Tokens that a pretrained vocabulary gains: rows of their own beside the embedding, which stays as it is.

The rows are parameters apart from the base's, so that they train and are saved alone while the base is frozen,
whatever the strategy and the precision. Each begins as the mean of the tokens that its text was read as before
(Gee et al. 2022, "Fast Vocabulary Transfer"), so that its logit is at first never above the largest of theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from adaptkit.errors import ModelError, Problem

ROWS = "new_rows"
BIAS = "new_bias"


@dataclass(frozen=True)
class NewTokens:
    """Tokens without a row in the files of the base.

    Attributes:
        first: Id of the first; the others follow it.
        pieces: For each, the ids of the tokens that its text was read as before; empty where nothing is known.
    """

    first: int
    pieces: tuple[tuple[int, ...], ...]

    @property
    def end(self) -> int:
        """The id behind the last one."""
        return self.first + len(self.pieces)


def add_new_tokens(tokenizer: Any, tokens: Sequence[str], vocab_size: int) -> NewTokens | None:
    """Adds tokens to the tokenizer of a pretrained base, in place.

    Args:
        tokenizer: Of the base.
        tokens: That it gains. One that it has already, without a row in the base, is as new.
        vocab_size: Rows of the base's embedding.

    Returns:
        None: there is nothing to add.

    Raises:
        ModelError: One problem a token that has a row already.
    """
    before = tokenizer.get_vocab()
    known = [token for token in tokens if before.get(token, vocab_size) < vocab_size]
    if known:
        fix = "take it off the list: it trains where the strategy trains the embedding"
        raise ModelError(
            [Problem(f"{token!r} is in the vocabulary already", "model.new_tokens", fix=fix) for token in known]
        )
    if not tokens:
        return None
    pieces = {token: _pieces(tokenizer, token, vocab_size) for token in tokens}
    tokenizer.add_tokens(list(tokens))
    ids = {tokenizer.convert_tokens_to_ids(token): token for token in tokens}
    first = min(vocab_size, *ids)  # ids between the embedding and the new ones would have no row
    return NewTokens(first, tuple(pieces.get(ids.get(number, ""), ()) for number in range(first, max(ids) + 1)))


def _pieces(tokenizer: Any, token: str, vocab_size: int) -> tuple[int, ...]:
    ids = tokenizer(token, add_special_tokens=False).input_ids
    return tuple(number for number in ids if number < vocab_size and number != tokenizer.unk_token_id)


def extend(model: nn.Module, new: NewTokens) -> None:
    """Gives a model rows for new tokens: in its embedding, and in the output layer of a language model.

    Tied layers share them. Names, class and tensors of the base stay; `shrink` takes the rows out again.

    Args:
        model: Of transformers, with its weights.
        new: Which tokens.

    Raises:
        ModelError: The model has no plain embedding, or more than one over the vocabulary.
    """
    embedding = _input_embedding(model)
    rows = nn.Parameter(_first_values(embedding.weight, new))
    for module in list(model.modules()):
        if isinstance(module, nn.Embedding) and module.weight is embedding.weight:
            _extend_embedding(module, rows, new.first)
    output: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if output is not None:
        size = len(output.weight)
        _extend_output(model, output, new, rows if output.weight is embedding.weight else None)
        _check_logits(model, new, max(size, new.end))


def new_row_parameters(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of the parameters that `extend` added, each tensor once."""
    ends = (f"{ROWS}.weight", ROWS, BIAS)
    inside = {f"{name}.{end}" for name, module in model.named_modules() if _is_extended(module) for end in ends}
    return tuple(name for name, _ in model.named_parameters() if name in inside)


def fold(model: Any) -> None:
    """Makes the rows part of embedding and output layer, in place: an ordinary model with a larger vocabulary.

    Args:
        model: A `PreTrainedModel`.
    """
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if not _is_extended(embedding):
        return
    first, rows = embedding.first_new, getattr(embedding, ROWS).weight.detach()
    out_rows = getattr(output, ROWS, rows)
    out_bias = getattr(output, BIAS, None)
    end = first + len(rows)
    for module in _extended(model):
        _take_out(module)
    model.resize_token_embeddings(max(end, embedding.num_embeddings), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[first:end] = rows
        output = model.get_output_embeddings()
        if output is not None:
            output.weight[first:end] = out_rows
            if out_bias is not None:
                output.bias[first:end] = out_bias


class _ExtendedEmbedding(nn.Module):
    """What an extended embedding does, whatever class of transformers it is of.

    Attributes:
        first_new: Id of the first new token.
        new_rows: Another embedding of the same class, of the new tokens alone.
    """

    first_new: int
    new_rows: nn.Embedding

    def forward(self, input_ids: Tensor) -> Tensor:
        """Returns ``(..., hidden)`` for ids of any shape."""
        position = input_ids - self.first_new
        is_new = (position >= 0) & (position < self.new_rows.num_embeddings)
        hidden: Tensor = super().forward(input_ids.masked_fill(is_new, 0))
        new: Tensor = self.new_rows(position.masked_fill(~is_new, 0))
        return torch.where(is_new.unsqueeze(-1), new.to(hidden.dtype), hidden)


class _ExtendedOutput(nn.Module):
    """What an extended output layer does.

    Attributes:
        first_new: Id of the first new token.
        new_rows: ``(new tokens, hidden)``.
        new_bias: ``(new tokens,)``, or None.
    """

    first_new: int
    new_rows: nn.Parameter
    new_bias: nn.Parameter | None

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns logits ``(..., vocabulary)`` with those of the new tokens among them."""
        logits: Tensor = super().forward(hidden)
        new = linear(hidden.to(self.new_rows.dtype), self.new_rows, self.new_bias).to(logits.dtype)
        end = self.first_new + len(self.new_rows)
        return torch.cat((logits[..., : self.first_new], new, logits[..., end:]), dim=-1)


@cache
def _with(behaviour: Any, of: Any) -> Any:
    """Returns a subclass of a layer's class that knows new tokens."""
    return type(f"{of.__name__}WithNewRows", (behaviour, of), {})


def _is_extended(module: nn.Module | None) -> bool:
    return isinstance(module, _ExtendedEmbedding | _ExtendedOutput)


def _extended(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in list(model.modules()) if _is_extended(module))


def _input_embedding(model: Any) -> nn.Embedding:
    """Returns the only embedding over the vocabulary; its copies that are tied to it do not count."""
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise _refusal(model, "its embedding is not a table of rows")
    size = embedding.num_embeddings
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings == size and module.weight is not embedding.weight:
            raise _refusal(model, f"it has a second embedding over the vocabulary, {name!r}")
    return embedding


def _extend_embedding(embedding: nn.Embedding, rows: nn.Parameter, first: int) -> None:
    # A copy with the rows in place of the weight: of the same class, so that it scales as the original does.
    new = copy.deepcopy(embedding, {id(embedding.weight): rows})
    new.num_embeddings, new.padding_idx = len(rows), None
    kind: Any = type(embedding)
    embedding.__class__ = _with(_ExtendedEmbedding, kind)
    embedding.add_module(ROWS, new)
    embedding.first_new = first  # type: ignore[assignment]


def _extend_output(model: Any, output: Any, new: NewTokens, tied: nn.Parameter | None) -> None:
    if not isinstance(output, nn.Linear):
        raise _refusal(model, f"its output layer is a {type(output).__name__}")
    size = len(output.weight)
    kind: Any = type(output)
    output.__class__ = _with(_ExtendedOutput, kind)
    output.register_parameter(ROWS, tied if tied is not None else nn.Parameter(_first_values(output.weight, new)))
    bias = None if output.bias is None else nn.Parameter(_first_values(output.bias, new))
    output.register_parameter(BIAS, bias)
    output.first_new = new.first  # type: ignore[assignment]
    added = getattr(model, "final_logits_bias", None)  # BART and its kin add it to the logits
    if added is not None and new.end > size:
        model.register_buffer("final_logits_bias", nn.functional.pad(added, (0, new.end - size)))


def _check_logits(model: Any, new: NewTokens, size: int) -> None:
    """Lets the model read a new token, and raises when it does not come with a logit for each."""
    ids = torch.full((1, 2), new.first, device=model.get_input_embeddings().weight.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    try:
        with torch.no_grad():
            logits = model(**inputs).logits
    except Exception as error:  # Each architecture fails in its own way where an id is not below its vocabulary.
        raise _refusal(model, f"it computes its logits in a way of its own ({error})") from error
    if logits.shape[-1] != size:
        raise _refusal(model, "it computes its logits without its output layer")


def _take_out(module: nn.Module) -> None:
    delattr(module, ROWS)
    if isinstance(module, _ExtendedOutput):
        delattr(module, BIAS)
    del module.first_new
    module.__class__ = type(module).__bases__[1]


def _first_values(weight: Tensor, new: NewTokens) -> Tensor:
    """Returns, for each new token, the mean of its pieces' rows of ``(vocabulary, …)``; without pieces that of all."""
    table = weight.detach()
    with torch.no_grad():
        means = [(table[list(pieces)] if pieces else table).float().mean(0) for pieces in new.pieces]
        return torch.stack(means).to(table.dtype)


def _refusal(model: Any, reason: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot gain tokens: {reason}",
        where="model.new_tokens",
        fix="leave model.new_tokens out, or choose another model",
    )
