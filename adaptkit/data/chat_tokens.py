"""From rendered conversations to token ids and labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

from adaptkit.data.chat import ChatText
from adaptkit.task import IGNORE_INDEX


def encode_chats(texts: Sequence[ChatText], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Tokenizes rendered conversations, whose special tokens the template has written.

    An answer is tokenized apart from what comes before it, because it is when it is asked for: the white space that
    a template ends its question with, or that an answer begins with, would often get other tokens between the two.
    That cannot be done with a tokenizer that puts a space in front of whatever it is given (Llama 2's); there a token
    that reaches into an answer is learned.

    Returns:
        Of each text the token ids, and as many labels: the id of a token that is learned, else -100.
    """
    if not texts:
        return []
    return _encode_apart(texts, tokenizer) if _can_join(tokenizer) else _encode_whole(texts, tokenizer)


def _can_join(tokenizer: Any) -> bool:
    """Returns whether the tokens of two texts, one after the other, are tokens of the two texts joined."""
    one, other = tokenizer(["a", "b"], add_special_tokens=False)["input_ids"]
    return bool(tokenizer.decode([*one, *other]) == "ab")


def _encode_apart(texts: Sequence[ChatText], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Tokenizes what is learned and what is not each by itself."""
    cuts = [[0, *chain.from_iterable(chat.learned), len(chat.text)] for chat in texts]
    parts = [chat.text[begin:end] for chat, bounds in zip(texts, cuts, strict=True) for begin, end in pairwise(bounds)]
    encoded = iter(tokenizer(parts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"])
    chats = []
    for bounds in cuts:
        ids: list[int] = []
        labels: list[int] = []
        for number in range(len(bounds) - 1):
            tokens = next(encoded)
            ids += tokens
            labels += tokens if number % 2 else [IGNORE_INDEX] * len(tokens)
        chats.append((ids, labels))
    return chats


def _encode_whole(texts: Sequence[ChatText], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    encoded = tokenizer(
        [chat.text for chat in texts],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    return [
        (ids, _labels(ids, offsets, chat.learned))
        for chat, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _labels(ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Returns the labels of tokens; one that reaches into a span is learned, wherever it begins."""
    labels = [IGNORE_INDEX] * len(ids)
    position = 0
    for start, end in spans:
        while position < len(ids) and offsets[position][0] < end:
            if offsets[position][1] > start:
                labels[position] = ids[position]
            position += 1
    return labels
