"""Running text without labels: checked, tokenized, and cut into blocks that lose nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field

from adaptkit.data.problems import data_error, text_problem
from adaptkit.errors import Problem, RecipeError
from adaptkit.task import Features, Row, Splits, TaskOptions
from adaptkit.tasks._examples import note_repeated
from adaptkit.tasks._language import LanguageTask

if TYPE_CHECKING:
    from adaptkit.recipe import DataSpec
    from adaptkit.strategy import JSON

# Tokens of a block where the recipe leaves it open: what RoBERTa (arXiv:1907.11692) and T5 (arXiv:1910.10683) were
# trained with. Many bases take far more, but attention grows with it, and a small text gives few steps.
BLOCK = 512
ItemT = TypeVar("ItemT")


class RunningTextOptions(TaskOptions):
    """The keys of ``task:`` of every task that learns from running text."""

    block: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="Tokens that the model reads at once. Default: data.max_length; where the recipe names neither, "
        f"{BLOCK}, or what the base can take if that is less.",
    )
    join: bool = Field(
        True,
        description="Join the texts, an end token between them, and cut the whole into blocks of one length. "
        "false: every text begins a block of its own.",
    )


OptionsT = TypeVar("OptionsT", bound=RunningTextOptions)


class RunningTextTask(LanguageTask[OptionsT]):
    """A task that makes its own labels from texts; a text to predict is a prompt.

    Attributes:
        documents: Training rows.
        characters: In all training rows together.
    """

    roles = ("text",)

    def __init__(self, options: OptionsT) -> None:
        super().__init__(options)
        self.documents = 0
        self.characters = 0

    def prepare(self, splits: Splits, data: DataSpec) -> None:
        """Checks the texts of all splits.

        Raises:
            DataError: Everything that is wrong in any split, the first ten problems in full.
        """
        problems = [] if splits.train else [Problem("there are no training rows", "data.train", "rows with a text")]
        for rows in (splits.train, splits.evaluation, splits.test):
            problems += _problems(rows)
        if problems:
            raise data_error(problems)
        self.documents = len(splits.train)
        self.characters = sum(len(row.values["text"]) for row in splits.train)
        known = [row.values["text"] for row in splits.train]
        for split, rows in (("evaluation", splits.evaluation), ("test", splits.test)):
            self.notes += note_repeated(known, [row.values["text"] for row in rows], split)

    def check(self, rows: Sequence[Row], *, labelled: bool) -> None:
        """Checks rows that come after training: texts to be evaluated, or (not labelled) prompts.

        Raises:
            DataError: A text is no string, or empty.
        """
        problems = _problems(rows)
        if problems:
            raise data_error(problems)

    def state(self) -> dict[str, JSON]:
        """Returns how much text there was."""
        return {"documents": self.documents, "characters": self.characters}

    def load_state(self, state: Mapping[str, JSON]) -> None:
        """Takes back what `state` gave."""
        self.documents, self.characters = int(state["documents"]), int(state["characters"])

    def facts(self) -> list[str]:
        """Returns a line about the amount of text."""
        return [f"text to train on: {self.documents:,} documents, {self.characters:,} characters"]

    def feature_count(self, rows: int) -> int | None:
        """Returns None: how many blocks a text gives shows when it is tokenized."""
        return None

    def features(
        self, rows: Sequence[Row], data: DataSpec, tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Features]:
        """Cuts texts into blocks, all rows together; of prompts, one feature a row.

        Raises:
            DataError: A text has no token to learn from, or a prompt cannot be answered.
            ModelError: The tokenizer lacks a token that the task needs.
            RecipeError: A block has more tokens than the base can take, or too few.
        """
        if not rows:
            return []
        if not labelled:
            return self.prompts(rows, tokenizer, max_length)
        return self.blocks(rows, tokenizer, self._block_length(data, max_length))

    @abstractmethod
    def blocks(self, rows: Sequence[Row], tokenizer: Any, length: int) -> list[Features]:
        """Cuts the texts of rows into blocks of ``length`` tokens at the most, special tokens included."""

    @abstractmethod
    def prompts(self, rows: Sequence[Row], tokenizer: Any, max_length: int) -> list[Features]:
        """Turns prompts into one feature each."""

    def _block_length(self, data: DataSpec, max_length: int) -> int:
        block = self.options.block
        if block is None:
            return max_length if data.max_length else min(max_length, BLOCK)
        if block > max_length:
            raise RecipeError(
                f"a block of {block} tokens is longer than the {max_length} tokens that a row may have",
                where="task.block",
                allowed=f"2 to {max_length}",
                fix="lower it, or raise data.max_length if the base can take more",
            )
        return block


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around every text.

    Attributes:
        prefix: ``[CLS]``, ``<s>`` or nothing.
        suffix: ``[SEP]``, ``</s>`` or nothing.
        end: What ends a document: the end token, else the suffix.
    """

    prefix: list[int]
    suffix: list[int]
    end: list[int]

    def room(self, length: int) -> int:
        """Returns how many tokens of a text fit into a block of ``length`` tokens.

        Raises:
            RecipeError: Not a single one.
        """
        room = length - len(self.prefix) - len(self.suffix)
        if room < 1:
            raise RecipeError(
                f"a block of {length} tokens leaves no room beside the {length - room} special tokens",
                where="task.block, data.max_length",
                allowed=f"at least {length - room + 1}",
                fix="raise it, or leave it out",
            )
        return room


def frame_of(tokenizer: Any) -> Frame:
    """Returns what a tokenizer puts around a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    begin = next(at for at in range(len(framed) + 1) if framed[at : at + len(bare)] == bare)
    suffix = framed[begin + len(bare) :]
    end = suffix if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return Frame(framed[:begin], suffix, end)


def tokenize(rows: Sequence[Row], tokenizer: Any) -> Any:
    """Returns the tokenizer's encoding of all rows, without special tokens and uncut.

    Raises:
        DataError: A text has no token.
    """
    texts = [row.values["text"] for row in rows]
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    empty = [row for row, ids in zip(rows, encoded["input_ids"], strict=True) if not ids]
    if empty:
        fix = "remove the row, or use a tokenizer that knows its characters"
        raise data_error([Problem("the tokenizer finds no token in the text", row.where, fix=fix) for row in empty])
    return encoded


def joined(documents: Sequence[Sequence[ItemT]], between: Sequence[ItemT] = ()) -> list[ItemT]:
    """Returns all documents in one sequence, with ``between`` between each two."""
    stream = list(documents[0])
    for document in documents[1:]:
        stream += [*between, *document]
    return stream


def cut(stream: Sequence[ItemT], length: int, overlap: int = 0) -> list[list[ItemT]]:
    """Cuts a sequence into blocks, the last one with what is left; each repeats ``overlap`` items of the one before."""
    begins = range(0, max(1, len(stream) - overlap), length - overlap)
    return [list(stream[begin : begin + length]) for begin in begins]


def cut_note(documents: Sequence[Sequence[Any]], length: int) -> list[str]:
    """Returns a note about texts that did not fit into one block, if there are any."""
    long = sum(len(document) > length for document in documents)
    return [f"{long:,} of {len(documents):,} texts are longer than a block and were cut into several"] if long else []


def _problems(rows: Sequence[Row]) -> list[Problem]:
    problems = []
    for row in rows:
        if found := text_problem(row.values.get("text")):
            problems.append(Problem(f"the text {found[0]}", row.place("text"), fix=found[1]))
    return problems
