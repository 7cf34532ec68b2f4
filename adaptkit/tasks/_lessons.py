"""From rendered conversations to features that fit, and back to the answer that a feature ends with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from adaptkit.data.chat import ChatText, TemplateRefusal
from adaptkit.data.chat_tokens import encode_chats
from adaptkit.errors import Problem
from adaptkit.task import IGNORE_INDEX, Features
from adaptkit.tasks._conversation import Conversation

if TYPE_CHECKING:
    from torch import Tensor

Rendered: TypeAlias = tuple[Conversation, list[ChatText]]


@dataclass
class Lessons:
    """What became of conversations.

    Attributes:
        features: ``input_ids`` and, of a conversation to learn, ``labels``; none longer than was allowed.
        too_long: One problem for each conversation of which nothing to learn, or no room for an answer, is left.
        cut: How many of the others lost their end.
    """

    features: list[Features] = field(default_factory=list)
    too_long: list[Problem] = field(default_factory=list)
    cut: int = 0


def make_features(rendered: Sequence[Rendered], tokenizer: Any, max_length: int) -> Lessons:
    """Tokenizes conversations and cuts them at the end."""
    encoded = iter(encode_chats([text for _, texts in rendered for text in texts], tokenizer))
    made = Lessons()
    for conversation, texts in rendered:
        parts = [next(encoded) for _ in texts]
        kept = [feature for ids, labels in parts if (feature := _feature(ids, labels, max_length))]
        made.features += kept
        if kept:
            made.cut += any(len(ids) > max_length for ids, _ in parts)
        else:
            made.too_long.append(_too_long(*parts[0], conversation.where, max_length))
    return made


def last_answer(batch: Mapping[str, Tensor], row: int, stop_ids: Collection[int]) -> tuple[Tensor, Tensor]:
    """Returns what comes before the last answer of a row of a batch, and the answer without its end token.

    Returns:
        Token ids, each of shape ``(tokens,)``.
    """
    ids, labels = batch["input_ids"][row], batch["labels"][row]
    learned = (labels != IGNORE_INDEX).nonzero().flatten().tolist()
    end = learned[-1] + 1
    start = next(place for place in reversed(range(end)) if place == 0 or labels[place - 1] == IGNORE_INDEX)
    return ids[:start], ids[start : end - 1] if int(ids[end - 1]) in stop_ids else ids[start:end]


def refused(refusal: TemplateRefusal, where: str) -> Problem:
    """Returns the problem of a row that the chat template does not take."""
    fix = "change the row or remove it, or choose another template: task.chat_template"
    return Problem(f"the chat template does not take this conversation: {refusal}", where, fix=fix)


def _feature(ids: list[int], labels: list[int], max_length: int) -> Features | None:
    """Returns a feature, cut at the end; None where no label is left, or where a question would be cut."""
    if all(label == IGNORE_INDEX for label in labels):
        # An answer needs at least one place behind the question.
        return {"input_ids": ids} if len(ids) < max_length else None
    # The first token is predicted from nothing.
    learns = any(label != IGNORE_INDEX for label in labels[1:max_length])
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]} if learns else None


def _too_long(ids: Sequence[int], labels: Sequence[int], where: str, max_length: int) -> Problem:
    """Returns the problem of a row whose question alone fills all the room there is."""
    before = next((place for place, label in enumerate(labels) if place and label != IGNORE_INDEX), None)
    drop = "" if before is None else ", or leave such rows out with task.too_long=drop"
    before = len(ids) if before is None else before
    return Problem(
        f"what comes before the answer has {before:,} tokens, so of {max_length:,} none is left for the answer",
        where,
        allowed=f"fewer than {max_length:,} tokens before the answer",
        fix=f"raise data.max_length to more than {before:,}, shorten or remove the row{drop}",
    )
