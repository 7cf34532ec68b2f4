"""Masked tokens of running text: pre-training of encoders, from scratch or continued."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pydantic import Field

from adaptkit.data.problems import data_error
from adaptkit.errors import ModelError, Problem
from adaptkit.task import IGNORE_INDEX, Features, Row, TaskCapabilities
from adaptkit.tasks._language import BECOMES
from adaptkit.tasks._running_text import RunningTextOptions, RunningTextTask, cut, cut_note, frame_of, joined, tokenize

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptkit.recipe import DataSpec
    from adaptkit.strategy import JSON

# Of the chosen tokens (BERT, arXiv:1810.04805): 80 % become the mask, 10 % another token, 10 % stay.
MASKED, REPLACED = 0.8, 0.1
# In place of a word's number: a token that is never chosen.
NEVER = -1


class MaskedLMOptions(RunningTextOptions):
    """The keys of ``task:`` for masked language modelling."""

    mask_probability: float = Field(0.15, gt=0, lt=1, description="Share of the tokens that are to be predicted.")
    whole_word: bool = Field(False, description="Choose all tokens of a word, or none of them.")


class MaskedLM(RunningTextTask[MaskedLMOptions]):
    """Predicts tokens from those on both sides (BERT, arXiv:1810.04805).

    Masks are drawn anew in every epoch (RoBERTa, arXiv:1907.11692); in evaluation they are the same every time.
    Every block has at least one token to predict, and no special token is ever one.
    """

    name = "masked-lm"
    Options = MaskedLMOptions
    capabilities = TaskCapabilities(families=frozenset({"encoder"}))
    kind = "masked"

    def __init__(self, options: MaskedLMOptions) -> None:
        super().__init__(options)
        self._mask = 0
        self._ordinary: list[int] = []

    def features(
        self, rows: Sequence[Row], data: DataSpec, tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Features]:
        """Cuts texts into blocks; ``words`` numbers the words of one, `NEVER` where nothing is to be predicted.

        Raises:
            ModelError: The tokenizer has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise ModelError(
                "the tokenizer has no mask token, which masked-lm puts in the place of tokens",
                where="model.name",
                allowed="a base with a mask token: BERT, RoBERTa, ModernBERT …",
                fix="choose such a base, or name one of its tokens as mask_token in tokenizer_config.json",
            )
        special = set(tokenizer.all_special_ids)
        self._mask = tokenizer.mask_token_id
        self._ordinary = [token for token in range(len(tokenizer)) if token not in special]
        return super().features(rows, data, tokenizer, max_length, labelled=labelled)

    def blocks(self, rows: Sequence[Row], tokenizer: Any, length: int) -> list[Features]:
        """Cuts the texts into blocks, each within the tokenizer's special tokens."""
        frame = frame_of(tokenizer)
        room = frame.room(length)
        encoded = tokenize(rows, tokenizer)
        documents = [
            list(zip(ids, self._words(encoded, index, len(ids)), strict=True))
            for index, ids in enumerate(encoded["input_ids"])
        ]
        if self.options.join:
            documents = [joined(documents, _unchosen(frame.suffix or frame.end))]
        else:
            self.notes += cut_note(documents, room)
        special = set(tokenizer.all_special_ids)
        features: list[Features] = []
        for block in (block for document in documents for block in cut(document, room)):
            framed = [*_unchosen(frame.prefix), *block, *_unchosen(frame.suffix)]
            input_ids = [token for token, _ in framed]
            features.append(
                {"input_ids": input_ids, "words": [NEVER if token in special else word for token, word in framed]}
            )
        return features

    def _words(self, encoded: Any, index: int, tokens: int) -> Sequence[int]:
        """Returns the number of each token's word, or of the token itself."""
        if not self.options.whole_word:
            return range(tokens)
        return [NEVER if word is None else word for word in encoded.word_ids(index)]

    def vary(self, feature: Features, generator: random.Random) -> Features:
        """Draws which tokens are to be predicted, and what stands in their place; prompts stay as they are."""
        if "words" not in feature:
            return feature
        original = feature["input_ids"]
        input_ids, labels = list(original), [IGNORE_INDEX] * len(original)
        for position in chosen_positions(feature["words"], self.options.mask_probability, generator):
            labels[position] = original[position]
            draw = generator.random()
            if draw < MASKED:
                input_ids[position] = self._mask
            elif draw < MASKED + REPLACED:
                input_ids[position] = generator.choice(self._ordinary)
        return {"input_ids": input_ids, "labels": labels}

    def preview(self, feature: Features, tokenizer: Any) -> list[tuple[str, bool]]:
        """Returns the tokens, decoded; behind those that are to be predicted → and what they were."""
        pieces = super().preview(feature, tokenizer)
        runs = groupby(feature.get("labels", ()), key=lambda label: label != IGNORE_INDEX)
        wanted = (tokenizer.decode(list(run)) for learned, run in runs if learned)
        return [(f"{text}{BECOMES}{next(wanted)}" if learned else text, learned) for text, learned in pieces]

    def prompts(self, rows: Sequence[Row], tokenizer: Any, max_length: int) -> list[Features]:
        """Tokenizes prompts, which must have a mask token and fit."""
        frame, problems = frame_of(tokenizer), []
        features = [
            {"input_ids": [*frame.prefix, *ids, *frame.suffix]} for ids in tokenize(rows, tokenizer)["input_ids"]
        ]
        for row, feature in zip(rows, features, strict=True):
            ids = feature["input_ids"]
            if self._mask not in ids:
                fix = f"write {tokenizer.mask_token} where a word is wanted"
                problems.append(Problem("the prompt has no mask token", row.where, fix=fix))
            elif len(ids) > max_length:
                fix = "shorten it"
                problems.append(Problem(f"the prompt has {len(ids)} tokens", row.where, f"at most {max_length}", fix))
        if problems:
            raise data_error(problems)
        return features

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[dict[str, JSON]]:
        """Returns ``{"text": filled, "fills": [one for each mask]}`` for each prompt."""
        from adaptkit.models.language.model import label_logits

        input_ids, masks = batch["input_ids"].clone(), batch["input_ids"] == self._mask
        asked = {**batch, "labels": input_ids.masked_fill(~masks, IGNORE_INDEX)}
        input_ids[masks] = label_logits(model, asked, self.kind).logits.argmax(dim=-1)
        decode = self.tokenizer.decode
        return [
            {
                "text": decode(ids, skip_special_tokens=True),
                "fills": [decode([token]).strip() for token in ids[mask].tolist()],
            }
            for ids, mask in zip(input_ids, masks, strict=True)
        ]


def _unchosen(tokens: Sequence[int]) -> list[tuple[int, int]]:
    """Returns tokens that are never to be predicted, each with `NEVER` in place of a word's number."""
    return [(token, NEVER) for token in tokens]


def chosen_positions(words: Sequence[int], probability: float, generator: random.Random) -> list[int]:
    """Returns which tokens are to be predicted: whole words, in random order, as many as keep to the share.

    Args:
        words: Number of each token's word, `NEVER` where none may be chosen.
        probability: Share of the other tokens; at least one word is chosen if there is one.
        generator: Draws.
    """
    members: dict[int, list[int]] = {}
    begun = 0
    for position, word in enumerate(words):
        # Numbers begin again with every document, so only neighbours with one number are one word.
        begun += position == 0 or word != words[position - 1]
        if word != NEVER:
            members.setdefault(begun, []).append(position)
    order = list(members.values())
    generator.shuffle(order)
    budget = max(1, round(probability * sum(map(len, order))))
    chosen: list[int] = []
    for word_positions in order:
        if not chosen or len(chosen) + len(word_positions) <= budget:
            chosen += word_positions
    return chosen
