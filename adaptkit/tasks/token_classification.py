"""One tag for every word: parts of speech, named entities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from adaptkit.data.problems import data_error, enumerate_names
from adaptkit.errors import Problem
from adaptkit.task import (
    IGNORE_INDEX,
    BaseModel,
    Best,
    Features,
    LossSum,
    Metrics,
    Row,
    Splits,
    Task,
    TaskCapabilities,
    TaskOptions,
)
from adaptkit.tasks._examples import note_repeated
from adaptkit.tasks._labels import alike, count_line, foreign_names, ordered
from adaptkit.tasks._language import pad_tokens
from adaptkit.tasks.tagging.alignment import NO_TOKEN, AlignedWords, align_words
from adaptkit.tasks.tagging.entities import BIO_TAG, EntityCounts, is_bio, unopened
from adaptkit.tasks.tagging.metrics import TaggingMetrics, summed_loss, tag_logits
from adaptkit.tasks.tagging.sentences import Sentence, read_sentences

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptkit.models.base.source import ModelSource
    from adaptkit.models.precision import Numerics
    from adaptkit.recipe import DataSpec
    from adaptkit.strategy import JSON

TRAIN = "data.train"


class TokenClassificationOptions(TaskOptions):
    """The keys of ``task:`` for token classification."""

    scheme: Literal["auto", "bio", "plain"] = Field(
        "auto",
        description="bio: the tags O, B-x and I-x mark entities, which are scored as a whole; plain: every tag stands "
        "for itself; auto: by what the training rows have.",
    )
    unseen_tags: Literal["error", "keep"] = Field(
        "error",
        description="What becomes of a tag that held-out rows have and no training row has: an error, or keep, by "
        "which the head has an output for it that nothing trains, so that its words count and are wrong.",
    )


class TokenClassification(Task[TokenClassificationOptions]):
    """Tagging with a linear head. The first sub-token of a word stands for the word.

    Attributes:
        tags: Names, in the order of the logits.
        counts: Training words of each tag.
        scheme: Whether tags mark entities.
    """

    name = "token-classification"
    Options = TokenClassificationOptions
    capabilities = TaskCapabilities(families=frozenset({"encoder", "decoder", "encoder-decoder"}))
    roles = ("tokens",)
    label_roles = ("tags",)
    echoed_roles = ("tokens",)
    peft_task_type = "TOKEN_CLS"
    best = Best("token_accuracy")

    def __init__(self, options: TokenClassificationOptions) -> None:
        super().__init__(options)
        self.tags: list[str] = []
        self.counts: list[int] = []
        self._use("plain")

    def _use(self, scheme: Literal["bio", "plain"]) -> None:
        self.scheme = scheme
        self.best = Best("f1" if scheme == "bio" else "token_accuracy")

    # -- before any model ----------------------------------------------------------------------------

    def prepare(self, splits: Splits, data: DataSpec) -> None:
        """Checks all splits, whose rows go by role, and learns the tags and their scheme.

        Raises:
            DataError: Everything that is wrong in any split, the first ten problems in full.
        """
        train, problems = read_sentences(splits.train, labelled=True)
        problems += self._learn_tags(train, rows=len(splits.train))
        held_out = {"evaluation": splits.evaluation, "test": splits.test}
        sentences = {}
        for split, rows in held_out.items():
            sentences[split], found = read_sentences(rows, labelled=True)
            problems += found
            if self.options.unseen_tags == "keep":
                self._keep_unseen(split, sentences[split])
            if self.tags:
                fix = "add training rows with it, remove its rows, or set task.unseen_tags to keep"
                unseen = f"of the {split} rows is on no training row"
                problems += foreign_names(_tags(sentences[split]), self.tags, unseen, fix, noun="tag")
        if problems:
            raise data_error(problems)
        self.notes += alike(self.tags, "tag")
        self._note_scheme(train)
        for split in held_out:
            known, other = ([tuple(row.tokens) for row in rows] for rows in (train, sentences[split]))
            self.notes += note_repeated(known, other, split)

    def check(self, rows: Sequence[Row], *, labelled: bool) -> None:
        """Checks rows that come after training: to be evaluated, or (without tags) to be predicted.

        Raises:
            DataError: Tokens or tags cannot be used, or a tag is not one of the head's.
        """
        self._checked(rows, labelled=labelled)

    def _checked(self, rows: Sequence[Row], *, labelled: bool) -> list[Sentence]:
        sentences, problems = read_sentences(rows, labelled=labelled)
        fix = "remove the rows or the tags"
        problems += foreign_names(_tags(sentences), self.tags, "is not one of this model's", fix, noun="tag")
        if problems:
            raise data_error(problems)
        return sentences

    def _learn_tags(self, train: Sequence[Sentence], *, rows: int) -> list[Problem]:
        counts = Counter(tag for tag, _ in _tags(train))
        self.tags = ordered(counts)
        self.counts = [counts[tag] for tag in self.tags]
        if not rows:
            return [Problem("there are no training rows", TRAIN, "rows with two tags or more", "check the file")]
        if len(counts) == 1:
            found = f"every word of the training rows has the tag {self.tags[0]!r}"
            return [Problem(found, TRAIN, "two tags or more", "check the column of the tags")]
        if self.options.scheme == "bio":
            self._use("bio")
            allowed = [tag for tag in self.tags if BIO_TAG.fullmatch(tag)] or ["O", "B-x", "I-x"]
            fix = "write O, B-x and I-x, or set task.scheme to plain"
            return foreign_names(_tags(train), allowed, "is not of the scheme bio", fix, noun="tag")
        self._use("bio" if self.options.scheme == "auto" and is_bio(self.tags) else "plain")
        return []

    def _keep_unseen(self, split: str, sentences: Sequence[Sentence]) -> None:
        words = Counter(
            tag
            for tag, _ in _tags(sentences)
            if tag not in self.tags and (self.scheme == "plain" or BIO_TAG.fullmatch(tag))
        )
        if not words:
            return
        counts = dict(zip(self.tags, self.counts, strict=True))
        self.tags = ordered([*self.tags, *words])
        self.counts = [counts.get(tag, 0) for tag in self.tags]
        named = enumerate_names(sorted(words))
        self.notes.append(f"{words.total():,} words of the {split} rows have tags that no training row has: {named}")

    def _note_scheme(self, train: Sequence[Sentence]) -> None:
        entities = [tag for tag in self.tags if BIO_TAG.fullmatch(tag) and tag != "O"]
        if self.scheme == "bio":
            opened_inside = sum(unopened(sentence.tags or ()) for sentence in train)
            if opened_inside:
                self.notes.append(f"entities of the training rows that begin with I- instead of B-: {opened_inside:,}")
        elif entities and self.options.scheme == "auto":
            other = next(tag for tag in self.tags if not BIO_TAG.fullmatch(tag))
            self.notes.append(
                f"tags such as {other!r} are not of the scheme bio, so entities are not scored as a whole"
            )

    def state(self) -> dict[str, JSON]:
        """Returns the tags, their training words, and the scheme."""
        return {"tags": self.tags, "counts": self.counts, "scheme": self.scheme}

    def load_state(self, state: Mapping[str, JSON]) -> None:
        """Takes back what `state` gave."""
        self.tags, self.counts = list(state["tags"]), list(state["counts"])
        self._use(state["scheme"])

    def from_text(self, text: str) -> dict[str, Any]:
        """Returns the words of a text, cut at white space."""
        return {"tokens": text.split()}

    def texts(self, rows: Sequence[Row]) -> Iterator[str]:
        """Yields the words of each row, joined by spaces."""
        for row in rows:
            yield " ".join(row.values["tokens"])

    def facts(self) -> list[str]:
        """Returns how many training words have which tag, and how the tags are read."""
        return [count_line("tag", self.tags, self.counts), f"scheme of the tags: {self.scheme}"]

    # -- from rows to batches ------------------------------------------------------------------------

    def features(
        self, rows: Sequence[Row], data: DataSpec, tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Features]:
        """Tokenizes rows.

        A feature has ``input_ids``; ``words``, the position in them of the first sub-token of each word, or -1; and
        ``labels``, one a token: at these positions the index of the tag, where the row has tags, else -100.

        Raises:
            DataError: Tokens or tags cannot be used, a tag is not one of the head's, or no word of a row is left.
        """
        sentences = self._checked(rows, labelled=False)
        aligned, cut = align_words([sentence.tokens for sentence in sentences], tokenizer, max_length)
        fix = "remove the row, or raise data.max_length"
        problems = [
            Problem("the tokenizer reads none of the words", sentence.where, fix=fix)
            for sentence, words in zip(sentences, aligned, strict=True)
            if set(words.positions) == {NO_TOKEN}
        ]
        if problems:
            raise data_error(problems)
        self._note_lost(aligned, cut, max_length)
        index = {tag: number for number, tag in enumerate(self.tags)}
        return [_feature(sentence, words, index) for sentence, words in zip(sentences, aligned, strict=True)]

    def _note_lost(self, aligned: Sequence[AlignedWords], cut: int, max_length: int) -> None:
        lost = sum(words.positions.count(NO_TOKEN) for words in aligned)
        if not lost:
            return
        total = sum(len(words.positions) for words in aligned)
        reason = "the tokenizer knows none of their characters"
        if cut:
            reason = f"{cut:,} of {len(aligned):,} rows are longer than {max_length:,} tokens and were cut"
        self.notes.append(f"{lost:,} of {total:,} words and their tags are lost: {reason}")

    def collate(self, features: Sequence[Features], tokenizer: Any) -> dict[str, Tensor]:
        """Pads on the right to the longest feature.

        Returns:
            int64 tensors: ``input_ids``, ``attention_mask`` and ``labels`` of shape ``(batch, seq)``; ``words`` of
            shape ``(batch, words)``, -100 behind the last word of a row.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        words = [torch.tensor(feature["words"]) for feature in features]
        return {
            **pad_tokens(features, tokenizer),
            "words": pad_sequence(words, batch_first=True, padding_value=IGNORE_INDEX),
        }

    def preview(self, feature: Features, tokenizer: Any) -> list[tuple[str, bool]]:
        """Returns the sub-tokens; one that stands for a word has its tag behind a slash."""
        first = {*feature["words"]}
        pieces = []
        for position, (token, label) in enumerate(zip(feature["input_ids"], feature["labels"], strict=True)):
            text = tokenizer.decode([token]).strip().removeprefix("##")
            if position and (position in first or token in tokenizer.all_special_ids):
                pieces.append((" ", False))
            tagged = label != IGNORE_INDEX
            pieces.append((f"{text}/{self.tags[label]}" if tagged else text, tagged))
        return pieces

    # -- through the model ---------------------------------------------------------------------------

    def load_base(self, source: ModelSource, numerics: Numerics, seed: int) -> BaseModel:
        """Loads the base with one output a tag."""
        from adaptkit.models.heads.token_classifier import load_token_classifier

        return load_token_classifier(source, numerics=numerics, seed=seed, labels=self.tags)

    def count(self, batch: Mapping[str, Tensor]) -> float:
        """Returns the words that have a tag."""
        return float((batch["labels"] != IGNORE_INDEX).sum())

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> LossSum:
        """Returns the cross-entropy in nats, summed over the words that have a tag."""
        return LossSum(summed_loss(tag_logits(model, batch), batch["labels"]))

    def metrics(self) -> Metrics:
        """Returns a collector of loss and token accuracy, and of the F1 of entities where tags mark them."""
        return TaggingMetrics(self.tags, EntityCounts() if self.scheme == "bio" else None)

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[dict[str, JSON]]:
        """Returns ``{"tags": [name …]}`` for each row; null for a word that the model does not see."""
        best = tag_logits(model, batch).argmax(dim=-1).tolist()
        rows = zip(best, batch["words"].tolist(), strict=True)
        return [
            {"tags": [None if word == NO_TOKEN else self.tags[tags[word]] for word in words if word != IGNORE_INDEX]}
            for tags, words in rows
        ]


def _tags(sentences: Sequence[Sentence]) -> Iterator[tuple[str, str]]:
    """Yields every tag, and where its row is."""
    for sentence in sentences:
        yield from ((tag, sentence.where) for tag in sentence.tags or ())


def _feature(sentence: Sentence, aligned: AlignedWords, index: Mapping[str, int]) -> Features:
    labels = [IGNORE_INDEX] * len(aligned.input_ids)
    for position, tag in zip(aligned.positions, sentence.tags or (), strict=sentence.tags is not None):
        if position != NO_TOKEN:
            labels[position] = index[tag]
    return {"input_ids": aligned.input_ids, "words": aligned.positions, "labels": labels}
