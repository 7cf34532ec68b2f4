"""Which rows seq2seq takes, and what features it makes of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError
from seq2seq_models import END, number_tokenizer

from adaptkit.errors import DataError, ModelError, Problem, RecipeError
from adaptkit.recipe import DataSpec
from adaptkit.registry import load_registry
from adaptkit.task import Row, Splits
from adaptkit.tasks._generation import EvenSample
from adaptkit.tasks.seq2seq import Seq2Seq, Seq2SeqOptions

REGISTRY = load_registry()
DATA = DataSpec(train="train.jsonl", evaluation="eval.jsonl", columns={"target": "reply"})
PAIR = {"source": "1 2", "target": "2 1"}


def task(**options: Any) -> Seq2Seq:
    made: Seq2Seq = REGISTRY.make_task(Seq2SeqOptions(name="seq2seq", **options))
    return made


def rows(values: Sequence[dict[str, Any]], file: str = "train.jsonl") -> list[Row]:
    return [Row(value, f"{file}:{line}", {"target": "reply"}) for line, value in enumerate(values, 1)]


def problems_of(train: Sequence[dict[str, Any]], evaluation: Sequence[dict[str, Any]] = ()) -> tuple[Problem, ...]:
    with pytest.raises(DataError) as caught:
        task().prepare(Splits(rows(train), rows(evaluation, "eval.jsonl")), DATA)
    return caught.value.problems


def features(values: Sequence[dict[str, Any]], template: str = "$A </s>", length: int = 8, **options: Any) -> Any:
    subject = task(**options)
    made = subject.features(rows(values), DATA, number_tokenizer(template), length)
    return made, subject


# -- rows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "found"),
    [(None, "is null"), ("", "is an empty string"), ("  ", "only white space"), (3, "the number 3"), (["a"], "a list")],
)
def test_source_and_target_are_texts(value: Any, found: str) -> None:
    source, target = problems_of([PAIR, {"source": value, "target": value}])
    assert source.found.startswith("the source")
    assert target.found.startswith("the target")
    assert found in source.found
    assert found in target.found
    assert source.where == "train.jsonl:2, column 'source'"
    assert target.where == "train.jsonl:2, column 'reply'"


def test_all_problems_of_all_splits_come_at_once() -> None:
    found = problems_of([{"source": "", "target": "1"}], [PAIR, {"source": "1", "target": None}])
    assert [problem.where for problem in found] == ["train.jsonl:1, column 'source'", "eval.jsonl:2, column 'reply'"]


def test_training_needs_rows() -> None:
    (problem,) = problems_of([])
    assert problem.found == "there are no training rows"


def test_held_out_rows_that_are_training_rows_are_counted() -> None:
    subject = task()
    held_out = [PAIR, {"source": "1 2", "target": "9"}, {"source": "9", "target": "2 1"}]
    subject.prepare(Splits(rows([PAIR]), rows(held_out, "eval.jsonl")), DATA)
    assert subject.notes == ["1 of 3 evaluation rows are also training rows, so the evaluation figures flatter"]


def test_a_row_to_predict_needs_no_target() -> None:
    subject = task()
    bare, null = {"source": "1"}, {"source": "1", "target": None}
    subject.check(rows([bare, null, PAIR]), labelled=False)
    with pytest.raises(DataError) as caught:
        subject.check(rows([bare, null]), labelled=True)
    [problem] = caught.value.problems
    assert problem.where == "train.jsonl:1, column 'reply'\ntrain.jsonl:2, column 'reply'"
    assert subject.from_text("1") == bare


# -- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [{"metrics": "bleu"}, {"num_beams": 0}, {"max_target_length": 1}, {"beams": 2}])
def test_an_impossible_option_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        task(**option)


def test_texts_longer_than_the_base_takes_are_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        features([PAIR], length=8, max_target_length=9, max_new_tokens=10)
    assert [problem.where for problem in caught.value.problems] == ["task.max_target_length", "task.max_new_tokens"]


# -- features ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "source", "target"),
    [("$A </s>", [4, 5, END], [5, 4, END]), ("$A", [4, 5], [5, 4, END]), ("<s> $A </s>", [23, 4, 5, 1], [23, 5, 4, 1])],
    ids=["T5", "without special tokens", "BART"],
)
def test_every_target_ends_with_one_end_token(template: str, source: list[int], target: list[int]) -> None:
    (feature,), subject = features([PAIR], template)
    assert feature == {"input_ids": source, "labels": target}
    assert subject.length(feature) == len(source) + len(target)


@pytest.mark.parametrize("template", ["$A </s>", "$A", "<s> $A </s>"])
def test_what_is_too_long_is_cut_keeps_its_end_and_is_noted(template: str) -> None:
    long = {"source": "1 2 3 4 5 6 7 8 9", "target": "9 8 7 6 5 4 3 2 1"}
    made, subject = features([PAIR, long], template, length=8, max_target_length=5)
    assert len(made[1]["input_ids"]) == 8
    assert len(made[1]["labels"]) == 5
    assert made[1]["labels"][-1] == END
    assert subject.notes == [
        "1 of 2 sources are longer than 8 tokens and were cut",
        "1 of 2 targets are longer than 5 tokens and were cut",
    ]


def test_what_just_fits_is_not_cut() -> None:
    made, subject = features([{"source": "1 2 3", "target": "1 2 3"}], "$A", length=4)
    assert made[0]["labels"] == [4, 5, 6, END]
    assert subject.notes == []


def test_the_prefix_stands_in_front_of_each_source_and_of_no_target() -> None:
    made, _ = features([PAIR, {"source": "7", "target": "8"}], prefix="19 ")
    assert [feature["input_ids"][0] for feature in made] == [22, 22]
    assert [feature["labels"] for feature in made] == [[5, 4, END], [11, END]]


def test_rows_without_targets_give_features_without_labels() -> None:
    made, subject = features([{"source": "1"}, {"source": "2", "target": None}])
    assert made == [{"input_ids": [4, END]}, {"input_ids": [5, END]}]
    assert subject.length(made[0]) == 2


def test_unknown_characters_in_targets_are_noted() -> None:
    _, subject = features([PAIR, {"source": "x", "target": "1 ñ"}])
    assert subject.notes == ["1 of 2 targets have characters that the tokenizer does not know and no text can have"]


def test_a_source_without_a_single_token_is_an_error() -> None:
    tokenizer = number_tokenizer("$A")
    tokenizer.backend_tokenizer.pre_tokenizer = _nothing()
    with pytest.raises(DataError, match="no token of this tokenizer"):
        task().features(rows([PAIR]), DATA, tokenizer, 8)


def _nothing() -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(".+"), "removed")


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = number_tokenizer("$A")
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end token"):
        task().features(rows([PAIR]), DATA, tokenizer, 8)


def test_the_length_of_generated_texts_is_that_of_the_longest_training_target() -> None:
    subject, tokenizer = task(), number_tokenizer()
    subject.features(rows([PAIR, {"source": "1", "target": "1 2 3"}]), DATA, tokenizer, 8)
    subject.features(rows([{"source": "1", "target": "1 2 3 4 5"}]), DATA, tokenizer, 8)
    assert subject.longest_target == 4
    loaded = task()
    loaded.load_state(subject.state())
    loaded.features(rows([PAIR]), DATA, tokenizer, 8)
    assert loaded.longest_target == 4


def test_the_preview_shows_the_source_and_what_is_learned() -> None:
    (feature,), subject = features([PAIR])
    assert subject.preview(feature, number_tokenizer()) == [("1 2 </s>", False), (" → ", False), ("2 1 </s>", True)]


# -- which rows are generated --------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "total"), [(5, 50), (7, 50), (50, 50), (80, 50), (0, 50), (1, 1), (3, 0)])
def test_the_sample_has_the_wanted_size_spread_evenly_however_the_rows_are_cut(wanted: int, total: int) -> None:
    generator = random.Random(wanted)
    sample, chosen, seen = EvenSample(wanted, total), [], 0
    while seen < total:
        rows = min(generator.randint(1, 9), total - seen)
        chosen += [seen + index for index in sample.take(rows)]
        seen += rows
    assert sample.complete
    assert len(chosen) == min(wanted, total)
    assert chosen == EvenSample(wanted, total).take(total)
    gaps = {after - before for before, after in pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_rows_beyond_the_expected_ones_are_not_chosen() -> None:
    sample = EvenSample(2, 2)
    assert sample.take(5) == [0, 1]
    assert sample.take(5) == []
