"""From texts to token ids, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adaptkit.errors import RecipeError


@dataclass(frozen=True)
class EncodedTexts:
    """Token ids, one list a text.

    Attributes:
        input_ids: With the tokenizer's special tokens.
        token_type_ids: 0 for the first text of a pair, 1 for the second; None without pairs, or where the
            model knows no such thing.
        truncated: How many texts were longer than allowed and were cut.
        offsets: Begin and end of every token in its text, in characters; None where they were not asked for.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    truncated: int
    offsets: list[list[tuple[int, int]]] | None = None


def encode_texts(
    texts: Sequence[str],
    tokenizer: Any,
    max_length: int,
    *,
    pairs: Sequence[str] | None = None,
    with_offsets: bool = False,
) -> EncodedTexts:
    """Tokenizes all texts in one call, and once more those that have to be cut.

    Args:
        texts: Any number of texts.
        tokenizer: A ``transformers`` tokenizer.
        max_length: Tokens that a text may have, special tokens included; the longer text of a pair is cut first.
        pairs: The second text of each pair, as many as ``texts``.
        with_offsets: Whether the tokens' offsets are returned too.

    Raises:
        RecipeError: ``max_length`` leaves no room for a token beside the special ones.
    """
    special = tokenizer.num_special_tokens_to_add(pair=pairs is not None)
    least = special + (1 if pairs is None else 2)
    if max_length < least:
        # `transformers` would silently not cut at all.
        raise RecipeError(
            f"a maximum of {max_length} tokens leaves no room beside the {special} special tokens",
            where="data.max_length",
            allowed=f"at least {least}",
            fix="raise it, or leave it out to take what the base model can",
        )
    if not texts:
        return EncodedTexts([], None, 0)
    with_types = pairs is not None and "token_type_ids" in tokenizer.model_input_names
    options = {"return_attention_mask": False, "return_token_type_ids": with_types, "verbose": False}
    if with_offsets:
        options["return_offsets_mapping"] = True
    encoded = dict(tokenizer(list(texts), None if pairs is None else list(pairs), **options))
    long = [index for index, ids in enumerate(encoded["input_ids"]) if len(ids) > max_length]
    if long:
        second = None if pairs is None else [pairs[index] for index in long]
        cut = tokenizer([texts[index] for index in long], second, truncation=True, max_length=max_length, **options)
        for key, rows in encoded.items():
            for position, index in enumerate(long):
                rows[index] = cut[key][position]
    types = encoded["token_type_ids"] if with_types else None
    return EncodedTexts(encoded["input_ids"], types, len(long), encoded.get("offset_mapping"))
