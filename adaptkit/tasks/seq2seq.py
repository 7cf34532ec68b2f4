"""One text in, another out: translation, summarisation, and whatever else reads so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from adaptkit.data.encoding import encode_texts
from adaptkit.data.problems import data_error, text_problem
from adaptkit.errors import ModelError, Problem, RecipeError
from adaptkit.task import IGNORE_INDEX, Features, Metrics, Row, Splits, TaskCapabilities
from adaptkit.tasks._examples import note_repeated
from adaptkit.tasks._generation import GeneratingMetrics, GenerationMetrics, GenerationOptions, Writer
from adaptkit.tasks._language import LanguageTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptkit.recipe import DataSpec
    from adaptkit.strategy import JSON


class Seq2SeqOptions(GenerationOptions):
    """The keys of ``task:`` for text-to-text."""

    prefix: str = Field("", description="Text in front of each source: `translate English to Spanish: ` (T5).")
    max_target_length: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Tokens that a target may have; longer ones are cut. Default: `data.max_length`."
    )


class Seq2Seq(LanguageTask[Seq2SeqOptions]):
    """An encoder reads the source, a decoder writes the target.

    Attributes:
        longest_target: Tokens of the longest training target; how long a generated text may become.
    """

    name = "seq2seq"
    Options = Seq2SeqOptions
    capabilities = TaskCapabilities(families=frozenset({"encoder-decoder"}), generates=True)
    roles = ("source",)
    label_roles = ("target",)
    peft_task_type = "SEQ_2_SEQ_LM"
    kind = "seq2seq"

    def __init__(self, options: Seq2SeqOptions) -> None:
        super().__init__(options)
        self.longest_target = 0

    # -- before any model ----------------------------------------------------------------------------

    def prepare(self, splits: Splits, data: DataSpec) -> None:
        """Checks all splits, whose rows go by role.

        Raises:
            DataError: Everything that is wrong in any split, the first ten problems in full.
        """
        problems = [] if splits.train else [Problem("there are no training rows", "data.train")]
        for rows in (splits.train, splits.evaluation, splits.test):
            problems += _problems(rows, labelled=True)
        if problems:
            raise data_error(problems)
        for split, rows in (("evaluation", splits.evaluation), ("test", splits.test)):
            self.notes += note_repeated(_pairs(splits.train), _pairs(rows), split)

    def check(self, rows: Sequence[Row], *, labelled: bool) -> None:
        """Checks rows that come after training: to be evaluated, or (without targets) to be predicted.

        Raises:
            DataError: A source or a target cannot be used.
        """
        self._check(rows, labelled=labelled)

    def _check(self, rows: Sequence[Row], *, labelled: bool) -> None:
        problems = _problems(rows, labelled=labelled)
        if problems:
            raise data_error(problems)

    def state(self) -> dict[str, JSON]:
        """Returns the length of the longest training target."""
        return {"longest_target": self.longest_target}

    def load_state(self, state: Mapping[str, JSON]) -> None:
        """Takes back what `state` gave."""
        self.longest_target = int(state["longest_target"])

    # -- from rows to batches ------------------------------------------------------------------------

    def features(
        self, rows: Sequence[Row], data: DataSpec, tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Features]:
        """Returns ``input_ids`` of the source and, unless a row lacks its target, ``labels``: target and end token.

        Raises:
            DataError: A source or a target cannot be used.
            RecipeError: The recipe asks for longer targets than the base takes.
            ModelError: The tokenizer has no end token.
        """
        self._check(rows, labelled=False)
        self._check_lengths(max_length)
        encoded = encode_texts([self.options.prefix + row.values["source"] for row in rows], tokenizer, max_length)
        self._note(encoded.truncated, len(rows), f"sources are longer than {max_length:,} tokens and were cut")
        empty = [row.where for row, ids in zip(rows, encoded.input_ids, strict=True) if not ids]
        if empty:
            fix = "remove the row, or choose a tokenizer that knows its characters"
            raise data_error([Problem("the source has no token of this tokenizer", where, fix=fix) for where in empty])
        features: list[Features] = [{"input_ids": ids} for ids in encoded.input_ids]
        targets = [row.values["target"] for row in rows if row.values.get("target") is not None]
        if targets and len(targets) == len(rows):
            labels = self._labels(targets, tokenizer, self.options.max_target_length or max_length)
            for feature, ids in zip(features, labels, strict=True):
                feature["labels"] = ids
        return features

    def _labels(self, targets: Sequence[str], tokenizer: Any, limit: int) -> list[list[int]]:
        """Returns the token ids of targets, each with an end token, at most ``limit`` of them."""
        end = tokenizer.eos_token_id
        if end is None:
            raise ModelError(
                "the tokenizer has no end token, so a model could not learn to stop",
                where="model.name",
                allowed="a base whose tokenizer has an eos_token: T5, BART …",
                fix="choose such a base, or name one of its tokens as eos_token in tokenizer_config.json",
            )
        labels, cut = _encode_targets(targets, tokenizer, limit, end)
        unknown = tokenizer.unk_token_id
        gaps = 0 if unknown in (None, end) else sum(unknown in ids for ids in labels)
        self._note(cut, len(labels), f"targets are longer than {limit:,} tokens and were cut")
        self._note(gaps, len(labels), "targets have characters that the tokenizer does not know and no text can have")
        self.longest_target = self.longest_target or max(len(ids) for ids in labels)
        return labels

    def _check_lengths(self, max_length: int) -> None:
        wanted = {"max_target_length": self.options.max_target_length, "max_new_tokens": self.options.max_new_tokens}
        problems = [
            Problem(
                f"task.{key} is {length:,}, but a text may have {max_length:,} tokens",
                f"task.{key}",
                f"{max_length:,} at the most",
                "lower it, or raise data.max_length where the base can take more",
            )
            for key, length in wanted.items()
            if length is not None and length > max_length
        ]
        if problems:
            raise RecipeError(problems)

    def _note(self, count: int, total: int, what: str) -> None:
        if count:
            self.notes.append(f"{count:,} of {total:,} {what}")

    # -- through the model ---------------------------------------------------------------------------

    def metrics(self) -> Metrics:
        """Returns a collector of loss, perplexity, token accuracy and the figures of generated texts."""
        options = self.options
        generated = GenerationMetrics(self.text_metrics(), options.generate_rows, self._writer())
        return GeneratingMetrics(self.kind, generated, _pair, self.loss_chunk_tokens)

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[dict[str, JSON]]:
        """Returns ``{"text": ...}`` for each row."""
        sources = [_source(batch, index) for index in range(len(batch["input_ids"]))]
        return [{"text": text} for text in self._writer().write(model, sources)]

    def _writer(self) -> Writer:
        length = self.options.max_new_tokens or self.longest_target
        return Writer(self.tokenizer, self.kind, length, self.options.num_beams)


def _problems(rows: Sequence[Row], *, labelled: bool) -> list[Problem]:
    """Returns what is wrong with rows, text by text; without labels a target may be missing or null."""
    problems = []
    for row in rows:
        for role in ("source", "target"):
            value = row.values.get(role)
            check = text_problem(value) if labelled or role == "source" or value is not None else None
            if check:
                problems.append(Problem(f"the {role} {check[0]}", row.place(role), fix=check[1]))
    return problems


def _pairs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [(row.values["source"], row.values["target"]) for row in rows]


def _encode_targets(targets: Sequence[str], tokenizer: Any, limit: int, end: int) -> tuple[list[list[int]], int]:
    """Returns the token ids of targets, each with an end token, and how many had to be cut to ``limit`` tokens."""
    encoded = tokenizer(text_target=list(targets), return_attention_mask=False, verbose=False)["input_ids"]
    labels = [ids if end in ids else [*ids, end] for ids in encoded]
    long = [index for index, ids in enumerate(labels) if len(ids) > limit]
    for index in long:
        kept = limit - (end not in encoded[index])
        cut = tokenizer(text_target=targets[index], truncation=True, max_length=kept, verbose=False)["input_ids"]
        labels[index] = cut if end in cut else [*cut, end]
    return labels, len(long)


def _source(batch: Mapping[str, Tensor], row: int) -> Tensor:
    """Returns the token ids of a row of a batch without padding, ``(tokens,)``."""
    return batch["input_ids"][row][batch["attention_mask"][row].bool()]


def _pair(batch: Mapping[str, Tensor], row: int) -> tuple[Tensor, Tensor]:
    """Returns the token ids of a row's source and of its target without padding, each ``(tokens,)``."""
    labels = batch["labels"][row]
    return _source(batch, row), labels[labels != IGNORE_INDEX]
