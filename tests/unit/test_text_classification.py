from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from adaptkit.errors import DataError, Problem
from adaptkit.recipe import DataSpec
from adaptkit.task import Row, Splits
from adaptkit.tasks import adaptkit_register_tasks
from adaptkit.tasks.text_classification import TextClassification, TextClassificationOptions

DATA = DataSpec(train="train.jsonl", evaluation="eval.jsonl", test="test.jsonl", columns={"text": "review"})
GOOD = [{"text": "fine", "label": "pos"}, {"text": "dull", "label": "neg"}]


def task(**options) -> TextClassification:
    return TextClassification(TextClassificationOptions(name="text-classification", **options))


def rows(values: list[dict[str, object]], file: str = "train.jsonl") -> list[Row]:
    return [Row(value, f"{file}:{line}", {"text": "review"}) for line, value in enumerate(values, 1)]


def prepared(train: list[dict[str, object]], evaluation=(), test=(), **options) -> TextClassification:
    subject = task(**options)
    splits = Splits(rows(train), rows(list(evaluation), "eval.jsonl"), rows(list(test), "test.jsonl"))
    subject.prepare(splits, DATA)
    return subject


def problems_of(train: list[dict[str, object]], evaluation=(), test=(), **options) -> tuple[Problem, ...]:
    with pytest.raises(DataError) as caught:
        prepared(train, evaluation, test, **options)
    assert caught.value.exit_code == 3
    return caught.value.problems


def test_the_task_registers_itself_without_torch():
    code = (
        "import sys; from adaptkit.tasks import adaptkit_register_tasks as hook; hook(lambda task: print(task.name)); "
        "assert not {'torch', 'transformers', 'sklearn', 'datasets'} & set(sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "text-classification" in printed.split()
    found: list[type] = []
    adaptkit_register_tasks(found.append)
    assert TextClassification in found


# -- labels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["pos", "neg", "mixed"], ["mixed", "neg", "pos"]),
        ([10, 2, -1], ["-1", "2", "10"]),
        (["10", "2", "1"], ["1", "2", "10"]),
        ([True, False], ["False", "True"]),
        ([2, "10", "x"], ["10", "2", "x"]),
    ],
)
def test_labels_are_names_in_numeric_order_if_all_are_whole_numbers(values, names):
    subject = prepared([{"text": f"text {value}", "label": value} for value in values])
    assert subject.target.outputs == names


def test_the_recipe_may_fix_the_order_of_the_labels():
    subject = prepared(GOOD, labels=["pos", "neutral", "neg"])
    assert subject.target.outputs == ["pos", "neutral", "neg"]
    assert subject.target.counts == [1, 0, 1]


def test_labels_of_a_recipe_may_be_numbers_but_not_repeated():
    assert task(labels=[1, 2]).options.labels == ["1", "2"]
    with pytest.raises(ValidationError, match="named twice"):
        task(labels=["a", "a"])


def test_what_was_learned_survives_json():
    first = prepared([*GOOD, {"text": "good", "label": "pos"}])
    second = task()
    second.load_state(json.loads(json.dumps(first.state())))
    assert (second.target.outputs, second.target.counts, second.paired) == (["neg", "pos"], [1, 2], False)


# -- bad input: each names row and field and says what to do -------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "the text is null"),
        (float("nan"), "the text is null"),
        (5, "the text is the number 5, not a string"),
        (0.5, "the text is the number 0.5, not a string"),
        (["a"], "the text is a list, not a string"),
        ({"a": 1}, "the text is an object, not a string"),
        ("", "the text is an empty string"),
        (" \t\n", "the text has only white space"),
        ("half \ud83d", "the text has half of a surrogate pair, which is no character"),
    ],
)
@pytest.mark.parametrize("split", ["train", "eval", "test"])
def test_a_text_that_cannot_be_used_is_found_in_every_split(text, found, split):
    values = {"train": GOOD, "eval": GOOD, "test": GOOD, split: [*GOOD, {"text": text, "label": "pos"}]}
    [problem] = problems_of(values["train"], values["eval"], values["test"])
    assert problem.found == found
    assert problem.where == f"{split}.jsonl:3, column 'review'"
    assert problem.fix


@pytest.mark.parametrize(
    ("label", "found"),
    [
        (None, "the label is null"),
        (float("nan"), "the label is null"),
        (1.5, "the label is the number 1.5"),
        (["pos"], "the label is a list"),
        ("", "the label is an empty string"),
    ],
)
@pytest.mark.parametrize("split", ["train", "eval", "test"])
def test_a_label_that_cannot_be_used_is_found_in_every_split(label, found, split):
    values = {"train": GOOD, "eval": GOOD, "test": GOOD, split: [*GOOD, {"text": "so so", "label": label}]}
    [problem] = problems_of(values["train"], values["eval"], values["test"])
    assert problem.found == found
    assert problem.where == f"{split}.jsonl:3, column 'label'"
    assert problem.fix


def test_one_class_only_cannot_be_learned():
    [problem] = problems_of([{"text": "a", "label": "pos"}, {"text": "b", "label": "pos"}])
    assert problem.found == "every training row has the label 'pos'"
    assert problem.where == "data.train"
    assert problem.allowed == "two labels or more"
    assert problem.fix


@pytest.mark.parametrize("split", ["evaluation", "test"])
def test_a_label_that_training_never_saw_is_found_once_with_its_rows(split):
    held_out = [*GOOD, {"text": "x", "label": "poss"}, {"text": "y", "label": "poss"}]
    [problem] = problems_of(GOOD, **{split: held_out})
    assert problem.found == f"the label 'poss' of the {split} rows is on no training row (2 times, this is the first)"
    assert problem.where.endswith("jsonl:3")
    assert problem.allowed == "'neg', 'pos'"
    assert "did you mean 'pos'?" in problem.fix


def test_a_label_of_the_recipe_without_training_rows_is_unseen_too():
    [problem] = problems_of(GOOD, [{"text": "x", "label": "neutral"}], labels=["pos", "neutral", "neg"])
    assert "'neutral'" in problem.found
    assert problem.allowed == "'pos', 'neg'"


def test_a_training_label_that_the_recipe_does_not_list_is_found():
    [problem] = problems_of([*GOOD, {"text": "x", "label": "mixed"}], labels=["neg", "pos"])
    assert problem.found == "the label 'mixed' is not in task.labels"
    assert problem.where == "train.jsonl:3"


def test_no_training_rows_is_an_error():
    [problem] = problems_of([], GOOD)
    assert problem.found == "there are no training rows"
    assert problem.where == "data.train"


def test_everything_wrong_is_said_at_once_and_many_problems_are_counted():
    train = [*GOOD, {"text": "", "label": "pos"}, {"text": 5, "label": None}]
    problems = problems_of(train, [{"text": "x", "label": "new"}])
    assert [problem.where for problem in problems] == [
        "train.jsonl:3, column 'review'",
        "train.jsonl:4, column 'review'",
        "train.jsonl:4, column 'label'",
        "eval.jsonl:1",
    ]
    problems = problems_of([*GOOD, *[{"text": "", "label": "pos"}] * 500])
    assert problems[-1].where.splitlines()[-1] == "and 490 more"


def test_every_row_needs_a_second_text_where_training_has_pairs():
    pair = [{"text": "a", "text_pair": "b", "label": 0}, {"text": "c", "text_pair": "d", "label": 1}]
    assert prepared(pair).paired
    [problem] = problems_of(pair, [{"text": "e", "label": 0}])
    assert problem.found == "the text_pair is null"
    assert problem.where == "eval.jsonl:1, column 'text_pair'"


def test_rows_that_training_knows_are_a_note_not_an_error():
    assert prepared(GOOD, [{"text": "new", "label": "pos"}]).notes == []
    [note] = prepared(GOOD, [{"text": "new", "label": "pos"}, {"text": "fine", "label": "neg"}]).notes
    assert note.startswith("1 of 2 evaluation rows are also training rows")


# -- rows that come after training ---------------------------------------------------------------------


def test_later_rows_need_a_label_only_to_be_evaluated():
    subject = prepared(GOOD)
    subject.check(rows([{"text": "new"}]), labelled=False)
    with pytest.raises(DataError, match="the label is null"):
        subject.check(rows([{"text": "new"}]), labelled=True)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_label_that_the_model_does_not_have_is_found_in_later_rows(labelled):
    with pytest.raises(DataError) as caught:
        prepared(GOOD).check(rows([{"text": "new", "label": "Pos"}], "later.csv"), labelled=labelled)
    [problem] = caught.value.problems
    assert problem.found == "the label 'Pos' is not one of this model's"
    assert problem.where == "later.csv:1"
    assert problem.allowed == "'neg', 'pos'"
    assert "did you mean 'pos'?" in problem.fix


def letters(texts, pairs=None, *, truncation=False, max_length=None, **_):
    return {"input_ids": [[ord(letter) for letter in text][: max_length if truncation else None] for text in texts]}


class LetterTokenizer(SimpleNamespace):
    def __call__(self, *arguments, **options):
        return letters(*arguments, **options)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return 0


def test_features_hold_the_label_where_a_row_has_one_and_cut_rows_are_noted():
    subject = prepared(GOOD)
    tokenizer = LetterTokenizer(model_input_names=["input_ids"])
    data = rows([{"text": "abc", "label": "pos"}, {"text": "a"}, {"text": "b", "label": None}])
    assert subject.features(data, DATA, tokenizer, 2) == [
        {"input_ids": [97, 98], "label": 1},
        {"input_ids": [97]},
        {"input_ids": [98]},
    ]
    assert subject.notes == ["1 of 3 rows are longer than 2 tokens and were cut"]


def test_a_text_without_a_token_of_the_base_is_an_error():
    """It would train as an empty text, whatever its label."""
    tokenizer = LetterTokenizer(model_input_names=["input_ids"])
    tokenizer.num_special_tokens_to_add = lambda pair=False: 1
    data = rows([{"text": "abc", "label": "pos"}, {"text": "a"}])
    with pytest.raises(DataError) as caught:
        prepared(GOOD).features(data, DATA, tokenizer, 3)
    (problem,) = caught.value.problems
    assert (problem.found, problem.where) == ("the tokenizer finds no token in the text", "train.jsonl:2")


@pytest.mark.parametrize("twins", [("pos", "pos "), ("Pos", "pos"), ("caf\u00e9", "cafe\u0301"), ("so so", "so  so")])
def test_labels_that_read_alike_are_noted(twins):
    labels = [*twins, "other"]
    subject = prepared([{"text": f"text {label}", "label": label} for label in labels])
    (note,) = subject.notes
    assert all(repr(label) in note for label in twins)
    assert "'other'" not in note
