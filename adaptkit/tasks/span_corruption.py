"""Missing spans of running text: pre-training of encoder-decoders, from scratch or continued."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import Field

from adaptkit.data.problems import data_error
from adaptkit.errors import ModelError, Problem, RecipeError
from adaptkit.task import Features, Row, TaskCapabilities
from adaptkit.tasks._generation import generate
from adaptkit.tasks._running_text import (
    Frame,
    RunningTextOptions,
    RunningTextTask,
    cut,
    cut_note,
    frame_of,
    joined,
    tokenize,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptkit.recipe import DataSpec
    from adaptkit.strategy import JSON

# T5's names (arXiv:1910.10683); those of the first spans have the smallest numbers.
SENTINEL = re.compile(r"<extra_id_(\d+)>")


class SpanCorruptionOptions(RunningTextOptions):
    """The keys of ``task:`` for span corruption."""

    corruption_rate: float = Field(0.15, gt=0, lt=1, description="Share of the tokens that are missing.")
    mean_span: float = Field(3.0, ge=1, description="Tokens of a missing span, on average.")
    max_new_tokens: int = Field(64, ge=1, description="Tokens that a prediction writes, at the most.")


@dataclass(frozen=True)
class Corruption:
    """How much of a block is missing.

    Attributes:
        missing: Tokens.
        spans: In so many spans, no two of which touch.
    """

    missing: int
    spans: int


class SpanCorruption(RunningTextTask[SpanCorruptionOptions]):
    """Reads a text with a sentinel in the place of each missing span, and writes the spans (T5, arXiv:1910.10683).

    The target is each span behind its sentinel, one more sentinel, and the end token. Spans are drawn anew in
    every epoch; in evaluation they are the same every time.
    """

    name = "span-corruption"
    Options = SpanCorruptionOptions
    capabilities = TaskCapabilities(families=frozenset({"encoder-decoder"}))
    peft_task_type = "SEQ_2_SEQ_LM"
    kind = "seq2seq"

    def __init__(self, options: SpanCorruptionOptions) -> None:
        super().__init__(options)
        self._sentinels: list[int] = []
        self._frame = Frame([], [], [])

    def features(
        self, rows: Sequence[Row], data: DataSpec, tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Features]:
        """Cuts texts into blocks that fit when they are corrupted; ``missing`` tokens and ``spans`` are given.

        Raises:
            ModelError: The tokenizer has no sentinels.
        """
        self._sentinels, self._frame = sentinels_of(tokenizer), frame_of(tokenizer)
        return super().features(rows, data, tokenizer, max_length, labelled=labelled)

    def blocks(self, rows: Sequence[Row], tokenizer: Any, length: int) -> list[Features]:
        """Cuts the texts into blocks, which without the missing spans have ``length`` tokens."""
        documents = tokenize(rows, tokenizer)["input_ids"]
        room = self._room(length)
        if self.options.join:
            documents = [joined(documents, self._frame.end)]
        else:
            self.notes += cut_note(documents, room)
        blocks = [block for document in documents for block in cut(document, room)]
        return [{"input_ids": block, **vars(self._corruption(len(block)))} for block in blocks]

    def _corruption(self, tokens: int) -> Corruption:
        """Returns how much of a block of so many tokens is missing: at least one token, and not all if it has two."""
        missing = min(max(1, round(tokens * self.options.corruption_rate)), max(1, tokens - 1))
        spans = max(1, round(missing / self.options.mean_span))
        return Corruption(missing, min(spans, missing, tokens - missing + 1))

    def _lengths(self, tokens: int, corruption: Corruption) -> tuple[int, int]:
        """Returns how many tokens are read, and how many are written."""
        special = len(self._frame.prefix) + len(self._frame.suffix)
        read = tokens - corruption.missing + corruption.spans + special
        return read, corruption.missing + corruption.spans + 1 + len(self._frame.end)

    def _room(self, length: int) -> int:
        """Returns the tokens of the longest block that is at most ``length`` tokens on either side when corrupted."""
        tokens = 0
        while True:
            corruption = self._corruption(tokens + 1)
            fits = max(self._lengths(tokens + 1, corruption)) <= length
            if not fits or corruption.spans >= len(self._sentinels):
                break
            tokens += 1
        if not tokens:
            raise RecipeError(
                f"a block of {length} tokens leaves no room for a text beside sentinels and special tokens",
                where="task.block, data.max_length",
                fix="raise it, or leave it out",
            )
        return tokens

    def length(self, feature: Features) -> int:
        """Returns the tokens that are read and written, of a block as it will be corrupted."""
        if "spans" not in feature:
            return super().length(feature)
        return sum(self._lengths(len(feature["input_ids"]), Corruption(feature["missing"], feature["spans"])))

    def vary(self, feature: Features, generator: random.Random) -> Features:
        """Draws which spans are missing; prompts stay as they are."""
        if "spans" not in feature:
            return feature
        tokens = feature["input_ids"]
        spans = draw_spans(len(tokens), Corruption(feature["missing"], feature["spans"]), generator)
        read, written = corrupt(tokens, spans, self._sentinels)
        return {
            "input_ids": [*self._frame.prefix, *read, *self._frame.suffix],
            "labels": [*written, *self._frame.end],
        }

    def prompts(self, rows: Sequence[Row], tokenizer: Any, max_length: int) -> list[Features]:
        """Tokenizes prompts, which must have a sentinel and fit."""
        problems = []
        features: list[Features] = [
            {"input_ids": [*self._frame.prefix, *ids, *self._frame.suffix]}
            for ids in tokenize(rows, tokenizer)["input_ids"]
        ]
        for row, feature in zip(rows, features, strict=True):
            ids = feature["input_ids"]
            if not set(self._sentinels).intersection(ids):
                fix = "write <extra_id_0> where words are wanted, then <extra_id_1>, and so on"
                problems.append(Problem("the prompt has no sentinel", row.where, fix=fix))
            elif len(ids) > max_length:
                found = f"the prompt has {len(ids)} tokens"
                problems.append(Problem(found, row.where, f"at most {max_length}", "shorten it"))
        if problems:
            raise data_error(problems)
        return features

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[dict[str, JSON]]:
        """Returns ``{"text": filled, "fills": [one for each sentinel]}`` for each prompt."""
        written = generate(model, batch, self.tokenizer, self.options.max_new_tokens, self.kind)
        return [
            self._filled(prompt, answer) for prompt, answer in zip(batch["input_ids"].tolist(), written, strict=True)
        ]

    def _filled(self, prompt: Sequence[int], answer: Sequence[int]) -> dict[str, JSON]:
        """Puts what was written behind each sentinel in the sentinel's place."""
        spans: dict[int, list[int]] = {}
        span: list[int] = []
        for token in answer:
            if token in self._sentinels:
                span = spans.setdefault(token, [])
            else:
                span.append(token)
        text: list[int] = []
        for token in prompt:
            text += spans.get(token, []) if token in self._sentinels else [token]
        asked = [token for token in prompt if token in self._sentinels]

        def decode(ids: Sequence[int]) -> str:
            return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

        return {"text": decode(text), "fills": [decode(spans.get(token, [])) for token in asked]}


def sentinels_of(tokenizer: Any) -> list[int]:
    """Returns the ids of a tokenizer's sentinels, that of the first span first.

    Raises:
        ModelError: It has fewer than two.
    """
    numbered = [
        (int(match[1]), token) for name, token in tokenizer.get_vocab().items() if (match := SENTINEL.fullmatch(name))
    ]
    if len(numbered) < 2:
        raise ModelError(
            "the tokenizer has no sentinel tokens (<extra_id_0>, <extra_id_1> …), which stand for missing spans",
            where="model.name",
            allowed="T5 and its relatives, or a tokenizer that is trained on the rows",
            fix="choose such a base, or add them: model: {new_tokens: [<extra_id_0>, <extra_id_1>, …]}",
        )
    return [token for _, token in sorted(numbered)]


def draw_spans(tokens: int, corruption: Corruption, generator: random.Random) -> list[tuple[int, int]]:
    """Returns ``(begin, end)`` of the missing spans, in order; all ways to lay them are alike probable.

    Args:
        tokens: Of the block.
        corruption: How much is missing.
        generator: Draws.
    """
    lengths = _composition(corruption.missing, corruption.spans, generator)
    # One gap before each span and one behind the last; only the outer two may be empty.
    gaps = _composition(tokens - corruption.missing + 2, corruption.spans + 1, generator)
    spans, at = [], -1
    for gap, length in zip(gaps, lengths, strict=False):
        spans.append((at + gap, at + gap + length))
        at += gap + length
    return spans


def corrupt(
    tokens: Sequence[int], spans: Sequence[tuple[int, int]], sentinels: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Returns a block with sentinels in the place of spans, and the spans behind their sentinels and one more."""
    read: list[int] = []
    written: list[int] = []
    at = 0
    for (begin, end), sentinel in zip(spans, sentinels, strict=False):
        read += [*tokens[at:begin], sentinel]
        written += [sentinel, *tokens[begin:end]]
        at = end
    return [*read, *tokens[at:]], [*written, sentinels[len(spans)]]


def _composition(total: int, parts: int, generator: random.Random) -> list[int]:
    """Returns ``parts`` positive whole numbers of the sum ``total``, all ways alike probable."""
    cuts = sorted(generator.sample(range(1, total), parts - 1))
    return [end - begin for begin, end in pairwise([0, *cuts, total])]
