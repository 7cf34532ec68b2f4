"""One tag a word: what is read, which sub-token stands for which word, and what the figures are."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import texts
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adaptkit.errors import DataError, Problem
from adaptkit.task import IGNORE_INDEX, Row, Splits
from adaptkit.tasks.tagging.alignment import NO_TOKEN, align_words
from adaptkit.tasks.tagging.entities import EntityCounts, entities, is_bio
from adaptkit.tasks.token_classification import TokenClassification, TokenClassificationOptions

NAMES = [
    {"tokens": ["Ada", "Byron", "met", "Babbage"], "tags": ["B-PER", "I-PER", "O", "B-PER"]},
    {"tokens": ["in", "London"], "tags": ["O", "B-LOC"]},
]
WORDS = [{"tokens": ["pearls", "were", "eyes"], "tags": ["NN", "VB", "NN"]}, {"tokens": ["fade"], "tags": ["VB"]}]


def rows(values: Sequence[dict[str, Any]], file: str = "train.jsonl") -> list[Row]:
    return [Row(value, f"{file}:{line}") for line, value in enumerate(values, 1)]


def prepared(train: Sequence[Any], evaluation: Sequence[Any] = (), **options: Any) -> TokenClassification:
    subject = TokenClassification(TokenClassificationOptions(name="token-classification", **options))
    subject.prepare(Splits(rows(train), rows(evaluation, "eval.jsonl")), texts.DATA)
    return subject


def problems_of(train: Sequence[Any], evaluation: Sequence[Any] = (), **options: Any) -> tuple[Problem, ...]:
    with pytest.raises(DataError) as caught:
        prepared(train, evaluation, **options)
    assert all(problem.fix for problem in caught.value.problems)
    return caught.value.problems


# -- tags that only held-out rows have -----------------------------------------------------------------


def test_words_with_an_unseen_tag_count_where_such_tags_are_kept() -> None:
    held_out = [{"tokens": ["pearls", "!"], "tags": ["NN", "."]}, {"tokens": ["?"], "tags": ["."]}]
    subject = prepared(WORDS, held_out, unseen_tags="keep")
    assert (subject.tags, subject.counts) == ([".", "NN", "VB"], [0, 2, 2])
    assert "2 words of the evaluation rows have tags that no training row has: '.'" in subject.notes
    assert figures_of(subject, held_out)["token_accuracy"] < 1
    subject.check(rows(held_out), labelled=True)


def test_an_unseen_tag_that_is_not_of_the_scheme_is_refused_all_the_same() -> None:
    held_out = [{"tokens": ["Ada", "Rome"], "tags": ["NNS", "I-LOC"]}]
    (problem,) = problems_of(NAMES, held_out, unseen_tags="keep")
    assert problem.found == "the tag 'NNS' of the evaluation rows is on no training row"


# -- tags and their scheme -----------------------------------------------------------------------------


@pytest.mark.parametrize(("train", "scheme", "best"), [(NAMES, "bio", "f1"), (WORDS, "plain", "token_accuracy")])
def test_the_tags_tell_the_scheme_and_the_scheme_the_figure_that_chooses(train: Any, scheme: str, best: str) -> None:
    subject = prepared(train)
    assert (subject.scheme, subject.best.metric) == (scheme, best)
    assert subject.best.metric in figures_of(subject, train)


def test_tags_that_mark_entities_may_be_read_one_by_one() -> None:
    assert prepared(NAMES, scheme="plain").best.metric == "token_accuracy"


@pytest.mark.parametrize(
    ("tags", "bio"),
    [
        (["O", "B-PER"], True),
        (["B-PER", "I-PER"], True),
        (["O", "I-A-B"], True),
        (["O"], False),
        (["O", "B-PER", "S-PER"], False),
        (["O", "B"], False),
        (["B-"], False),
        (["NN", "VB"], False),
    ],
)
def test_bio_is_o_and_what_begins_with_b_or_i(tags: list[str], bio: bool) -> None:
    assert is_bio(tags) is bio


def test_a_tag_outside_the_scheme_that_was_asked_for_is_an_error() -> None:
    [problem] = problems_of([*NAMES, {"tokens": ["Paris"], "tags": ["S-LOC"]}], scheme="bio")
    assert problem.found == "the tag 'S-LOC' is not of the scheme bio"
    assert problem.where == "train.jsonl:3"


def test_a_tag_outside_the_scheme_is_said_where_entities_seem_meant() -> None:
    [note] = prepared([*NAMES, {"tokens": ["Paris"], "tags": ["S-LOC"]}]).notes
    assert "'S-LOC'" in note
    assert prepared(WORDS).notes == []


def test_entities_that_begin_inside_are_said() -> None:
    [note] = prepared([*NAMES, {"tokens": ["in", "Paris"], "tags": ["O", "I-LOC"]}]).notes
    assert note.endswith("begin with I- instead of B-: 1")


def test_what_was_learned_survives_json() -> None:
    first = prepared(NAMES)
    second = TokenClassification(TokenClassificationOptions(name="token-classification"))
    second.load_state(json.loads(json.dumps(first.state())))
    assert second.tags == first.tags == ["B-LOC", "B-PER", "I-PER", "O"]
    assert (second.scheme, second.best, second.facts()) == (first.scheme, first.best, first.facts())
    assert first.facts()[0] == "4 tags: B-PER 2, O 2, B-LOC 1, I-PER 1"


# -- bad input: each names row and field and says what to do -------------------------------------------


@pytest.mark.parametrize(
    ("row", "found", "column"),
    [
        ({"tokens": ["a", "b"], "tags": ["NN"]}, "the numbers of tokens (2) and tags (1) differ", "tags"),
        ({"tokens": None, "tags": ["NN"]}, "the tokens are null", "tokens"),
        ({"tokens": "a b", "tags": ["NN", "NN"]}, "the tokens are a string, not a list", "tokens"),
        ({"tokens": [], "tags": []}, "the list of tokens is empty", "tokens"),
        ({"tokens": ["a", ""], "tags": ["NN", "NN"]}, "token 2 is an empty string", "tokens"),
        ({"tokens": ["a", " \t"], "tags": ["NN", "NN"]}, "token 2 has only white space", "tokens"),
        ({"tokens": [None], "tags": ["NN"]}, "token 1 is null", "tokens"),
        ({"tokens": ["a", 5], "tags": ["NN", "NN"]}, "token 2 is the number 5, not a string", "tokens"),
        ({"tokens": ["a"], "tags": None}, "the tags are null", "tags"),
        ({"tokens": ["a"]}, "the tags are null", "tags"),
        ({"tokens": ["a"], "tags": "NN"}, "the tags are a string, not a list", "tags"),
        ({"tokens": ["a"], "tags": [None]}, "tag 1 is null", "tags"),
        ({"tokens": ["a"], "tags": [""]}, "tag 1 is an empty string", "tags"),
        ({"tokens": ["a"], "tags": [1.5]}, "tag 1 is the number 1.5", "tags"),
    ],
)
@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_row_that_cannot_be_used_is_found_in_every_split(row: Any, found: str, column: str, split: str) -> None:
    train, evaluation = (WORDS + [row] * (split == name) for name in ("train", "eval"))
    problem = problems_of(train, evaluation)[0]
    assert problem.found == found
    assert problem.where == f"{split}.jsonl:3, column '{column}'"


def test_one_tag_only_cannot_be_learned() -> None:
    [problem] = problems_of([{"tokens": ["a", "b"], "tags": ["O", "O"]}])
    assert problem.found == "every word of the training rows has the tag 'O'"


def test_no_training_rows_is_an_error() -> None:
    [problem] = problems_of([], WORDS)
    assert problem.found == "there are no training rows"


def test_a_tag_that_training_never_saw_is_found_once_with_its_words() -> None:
    [problem] = problems_of(WORDS, [{"tokens": ["a", "b"], "tags": ["NNS", "NNS"]}])
    assert problem.found == "the tag 'NNS' of the evaluation rows is on no training row (2 times, this is the first)"
    assert problem.where == "eval.jsonl:1"
    assert "did you mean 'NN'?" in str(problem.fix)


def test_later_rows_need_tags_only_to_be_evaluated() -> None:
    subject = prepared(WORDS)
    subject.check(rows([{"tokens": ["new"]}]), labelled=False)
    with pytest.raises(DataError, match="the tags are null"):
        subject.check(rows([{"tokens": ["new"]}]), labelled=True)
    with pytest.raises(DataError, match="the tag 'JJ' is not one of this model's"):
        subject.check(rows([{"tokens": ["new"], "tags": ["JJ"]}]), labelled=True)


def test_rows_that_training_knows_are_a_note_not_an_error() -> None:
    [note] = prepared(WORDS, WORDS[:1]).notes
    assert note.startswith("1 of 1 evaluation rows are also training rows")


# -- which sub-token stands for which word -------------------------------------------------------------

MANNERS = pytest.mark.parametrize("manner", texts.FAMILIES)
SENTENCES = st.lists(st.text("aeStéß東!'-9", min_size=1, max_size=8), min_size=1, max_size=8)


@MANNERS
@settings(max_examples=60, deadline=None)
@given(words=SENTENCES)
def test_a_word_is_read_as_in_running_text_and_its_first_sub_token_stands_for_it(manner: str, words: list[str]) -> None:
    tokenizer = texts.tokenizer(manner)
    [aligned], _ = align_words([words], tokenizer, 128)
    assert aligned.input_ids == tokenizer(" ".join(words))["input_ids"]
    expected, position = [], next(n for n, token in enumerate(aligned.input_ids) if token not in special(tokenizer))
    for number, word in enumerate(words):
        pieces = tokenizer(" " * (number > 0) + word, add_special_tokens=False)["input_ids"]
        blank = next(n for n, piece in enumerate(pieces) if tokenizer.decode([piece]).strip())
        expected.append(position + blank)
        position += len(pieces)
    assert aligned.positions == expected


def special(tokenizer: Any) -> set[int]:
    """Returns what a tokenizer puts around a text, and no word can be."""
    return {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}


@MANNERS
@settings(max_examples=30, deadline=None)
@given(words=SENTENCES)
def test_every_word_has_its_tag_once_and_no_other_sub_token_has_one(manner: str, words: list[str]) -> None:
    subject, tokenizer = prepared(WORDS), texts.tokenizer(manner)
    tags = [("NN", "VB")[len(word) % 2] for word in words]
    [feature] = subject.features(rows([{"tokens": words, "tags": tags}]), texts.DATA, tokenizer, 128)
    labels = feature["labels"]
    assert len(labels) == len(feature["input_ids"])
    assert [subject.tags[label] for label in labels if label != IGNORE_INDEX] == tags
    assert [position for position, label in enumerate(labels) if label != IGNORE_INDEX] == feature["words"]


@MANNERS
def test_words_that_are_cut_off_lose_their_tags_and_that_is_said(manner: str) -> None:
    subject, tokenizer = prepared(WORDS), texts.tokenizer(manner)
    data = rows([{"tokens": ["pearls", "were"] * 10, "tags": ["NN", "VB"] * 10}, WORDS[1]])
    long, short = subject.features(data, texts.DATA, tokenizer, 8)
    assert len(long["input_ids"]) == len(long["labels"]) == 8
    kept = sum(label != IGNORE_INDEX for label in long["labels"])
    assert 0 < kept < 20
    assert long["words"].count(NO_TOKEN) == 20 - kept
    assert NO_TOKEN not in short["words"]
    [note] = subject.notes
    assert note.startswith(f"{20 - kept} of 21 words and their tags are lost: 1 of 2 rows are longer than 8 tokens")


def test_a_word_that_the_tokenizer_leaves_out_loses_its_tag_alone() -> None:
    subject = prepared(WORDS)
    row = {"tokens": ["pearls", "\u200b", "eyes"], "tags": ["NN", "VB", "NN"]}
    [feature] = subject.features(rows([row]), texts.DATA, texts.tokenizer("bert"), 64)
    assert [word == NO_TOKEN for word in feature["words"]] == [False, True, False]
    assert sum(label != IGNORE_INDEX for label in feature["labels"]) == 2
    assert subject.notes[0].startswith("1 of 3 words and their tags are lost")


def test_a_row_of_which_nothing_is_left_is_an_error_with_its_place() -> None:
    data = rows([WORDS[0], {"tokens": ["\u200b", "\u200d"], "tags": ["NN", "VB"]}])
    with pytest.raises(DataError) as caught:
        prepared(WORDS).features(data, texts.DATA, texts.tokenizer("bert"), 64)
    [problem] = caught.value.problems
    assert (problem.found, problem.where) == ("the tokenizer reads none of the words", "train.jsonl:2")


@MANNERS
def test_a_preview_shows_which_sub_token_has_which_tag(manner: str) -> None:
    subject, tokenizer = prepared(WORDS), texts.tokenizer(manner)
    pieces = subject.preview(subject.features(rows(WORDS[:1]), texts.DATA, tokenizer, 64)[0], tokenizer)
    learned = [text for text, on in pieces if on]
    assert [text.partition("/")[2] for text in learned] == ["NN", "VB", "NN"]
    shown = "".join(text for text, _ in pieces)
    for tag in ("/NN", "/VB"):
        shown = shown.replace(tag, "")
    assert "pearls were eyes" in shown


def test_a_text_is_asked_for_word_by_word() -> None:
    subject = prepared(WORDS)
    assert subject.from_text(" pearls  were ") == {"tokens": ["pearls", "were"]}
    assert list(subject.texts(rows(WORDS))) == ["pearls were eyes", "fade"]


# -- loss, predictions and figures ---------------------------------------------------------------------


class Says(nn.Module):
    """Gives each token logits of its own, and some virtual tokens in front others."""

    def __init__(self, tags: int, virtual: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(400, tags, generator=torch.Generator().manual_seed(0)))
        self.virtual = virtual

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        logits = self.weight[input_ids]
        front = torch.full((len(input_ids), self.virtual, logits.shape[2]), 50.0)
        return SimpleNamespace(logits=torch.cat([front, logits], dim=1))


def batch_of(subject: TokenClassification, values: Sequence[Any]) -> dict[str, Tensor]:
    tokenizer = texts.tokenizer("bert")
    return subject.collate(subject.features(rows(values), texts.DATA, tokenizer, 64), tokenizer)


def figures_of(subject: TokenClassification, values: Sequence[Any], *sizes: int) -> dict[str, float]:
    model, metrics = Says(len(subject.tags)), subject.metrics()
    batch = batch_of(subject, values)
    with torch.no_grad():
        for part in torch.arange(len(values)).split(list(sizes) or len(values)):
            metrics.update(model, {key: value[part] for key, value in batch.items()})
    return metrics.compute()


def test_the_loss_of_a_uniform_guess_is_the_logarithm_of_the_tags() -> None:
    subject = prepared(NAMES)
    model = Says(4)
    nn.init.zeros_(model.weight)
    batch = batch_of(subject, [*NAMES, {"tokens": ["bones"]}])
    assert subject.count(batch) == 6
    loss = subject.loss(model, batch).total / subject.count(batch)
    torch.testing.assert_close(loss, torch.tensor(4.0).log())


def test_logits_of_virtual_tokens_in_front_are_left_out() -> None:
    subject, values = prepared(NAMES), [*NAMES]
    batch = batch_of(subject, values)
    plain, longer = (subject.loss(Says(4, virtual), batch).total for virtual in (0, 3))
    torch.testing.assert_close(plain, longer)


def test_a_prediction_has_one_tag_a_word_and_null_where_the_model_sees_none() -> None:
    subject = prepared(NAMES)
    batch = batch_of(subject, [{"tokens": ["Ada", "\u200b", "met"]}, *NAMES])
    with torch.no_grad():
        predictions = subject.predict(Says(4), batch)
    assert [len(prediction["tags"]) for prediction in predictions] == [3, 4, 2]
    assert predictions[0]["tags"][1] is None
    assert {*predictions[1]["tags"], *predictions[2]["tags"]} <= {*subject.tags}
    ada = {prediction["tags"][0] for prediction in predictions[:2]}
    assert len(ada) == 1  # the same word, by a model that sees words alone


@pytest.mark.parametrize("train", [NAMES, WORDS])
def test_metrics_do_not_depend_on_the_batches(train: Any) -> None:
    subject = prepared(train)
    assert figures_of(subject, train, 1, 1) == pytest.approx(figures_of(subject, train))


def test_figures_without_a_single_tag_are_an_error_not_a_zero() -> None:
    with pytest.raises(DataError, match="nothing can be measured"):
        figures_of(prepared(NAMES), [{"tokens": ["Ada"]}])


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-a I-a O B-b", {("a", 0, 1), ("b", 3, 3)}),
        ("B-a B-a", {("a", 0, 0), ("a", 1, 1)}),
        ("B-a I-b", {("a", 0, 0), ("b", 1, 1)}),
        ("O I-a I-a O", {("a", 1, 2)}),
        ("I-a B-a I-a", {("a", 0, 0), ("a", 1, 2)}),
        ("O O", set()),
        ("B-a-b I-a-b", {("a-b", 0, 1)}),
    ],
)
def test_entities_are_read_as_conlleval_reads_them(tags: str, expected: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == expected


def random_tags(generator: random.Random) -> list[list[str]]:
    names = ["O", "O", "B-a", "I-a", "B-b", "I-b", "B-a-c", "I-a-c"]
    return [generator.choices(names, k=generator.randint(1, 12)) for _ in range(30)]


@pytest.mark.parametrize("seed", range(20))
def test_the_figures_of_entities_are_seqevals(seed: int) -> None:
    seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
    generator = random.Random(seed)
    true = random_tags(generator)
    predicted = [[tag if generator.random() < 0.8 else "O" for tag in row] for row in true]
    counts = EntityCounts()
    for pair in zip(true, predicted, strict=True):
        counts.update(*pair)
    found = counts.compute()
    assert found["precision"] == pytest.approx(seqeval.precision_score(true, predicted))
    assert found["recall"] == pytest.approx(seqeval.recall_score(true, predicted))
    assert found["f1"] == pytest.approx(seqeval.f1_score(true, predicted))


def test_figures_without_entities_are_zero() -> None:
    counts = EntityCounts()
    counts.update(["O"], ["O"])
    assert counts.compute() == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
