"""From words to sub-tokens, and which sub-token stands for which word."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from adaptkit.data.encoding import encode_texts

# The position of a word that has no sub-token: it was cut off, or the tokenizer leaves such characters out.
NO_TOKEN = -1


@dataclass(frozen=True)
class AlignedWords:
    """The words of one row as a model reads them.

    Attributes:
        input_ids: With the tokenizer's special tokens.
        positions: For each word where its first sub-token stands in ``input_ids``, or `NO_TOKEN`.
    """

    input_ids: list[int]
    positions: list[int]


def align_words(rows: Sequence[Sequence[str]], tokenizer: Any, max_length: int) -> tuple[list[AlignedWords], int]:
    """Tokenizes words, joined by single spaces as the model knows text from its pre-training.

    Word by word, a byte-level or SentencePiece tokenizer would give the pieces of one long word. The offsets of
    the sub-tokens in the text tell the words.

    Args:
        rows: Words that are not blank.
        tokenizer: A fast ``transformers`` tokenizer.
        max_length: Tokens that a row may have, special tokens included.

    Returns:
        One a row, and how many rows were longer than allowed and were cut.
    """
    texts = [" ".join(words) for words in rows]
    encoded = encode_texts(texts, tokenizer, max_length, with_offsets=True)
    aligned = [
        AlignedWords(ids, _first_positions(words, text, offsets))
        for words, text, ids, offsets in zip(rows, texts, encoded.input_ids, encoded.offsets or [], strict=True)
    ]
    return aligned, encoded.truncated


def _first_positions(words: Sequence[str], text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Returns the position of the first sub-token that has a letter of each word.

    Args:
        words: Of the text.
        text: The words, joined by single spaces.
        offsets: Begin and end of each sub-token in the text; empty for special tokens. They may have the space in
            front of the word.
    """
    starts = [0, *accumulate(len(word) + 1 for word in words[:-1])]
    positions = [NO_TOKEN] * len(words)
    for position, (begin, end) in enumerate(offsets):
        while begin < end and text[begin].isspace():
            begin += 1
        word = bisect_right(starts, begin) - 1
        if begin < end and positions[word] == NO_TOKEN:
            positions[word] = position
    return positions
