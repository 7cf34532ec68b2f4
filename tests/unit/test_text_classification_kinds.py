"""Several labels a text, or a number: what is read, what is learned, and what the figures are."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor, nn

from adaptkit.errors import DataError, Problem, RecipeError
from adaptkit.recipe import DataSpec
from adaptkit.task import Row, Splits
from adaptkit.tasks.classification.multi import MultiLabelFigures
from adaptkit.tasks.classification.regression import RegressionFigures
from adaptkit.tasks.text_classification import TextClassification, TextClassificationOptions

DATA = DataSpec(train="train.jsonl")
TOKENIZER = SimpleNamespace(pad_token_id=9)
TOPICS = [["sad"], ["sad", "long"], [], ["long"]]
STARS = [0.5, 3, 4.25, 1.0]


def rows(labels: Sequence[Any], file: str = "train.jsonl") -> list[Row]:
    return [Row({"text": f"{file} {n}", "label": label}, f"{file}:{n}") for n, label in enumerate(labels, 1)]


def prepared(train: Sequence[Any], evaluation: Sequence[Any] = (), **options: Any) -> TextClassification:
    subject = TextClassification(TextClassificationOptions(name="text-classification", **options))
    subject.prepare(Splits(rows(train), rows(evaluation, "eval.jsonl")), DATA)
    return subject


def problems_of(train: Sequence[Any], evaluation: Sequence[Any] = (), **options: Any) -> tuple[Problem, ...]:
    with pytest.raises(DataError) as caught:
        prepared(train, evaluation, **options)
    assert all(problem.fix for problem in caught.value.problems)
    return caught.value.problems


def batch(subject: TextClassification, labels: Sequence[Any]) -> dict[str, Tensor]:
    """Returns rows of one token, the number of the row."""
    encoded = [None if label is None else subject.target.encode(subject.target.parse(label)) for label in labels]
    features = [{"input_ids": [n], "label": label} for n, label in enumerate(encoded)]
    return subject.collate(features, TOKENIZER)


class Says(nn.Module):
    """Gives row n the n-th of some logits."""

    def __init__(self, logits: Any) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits[input_ids[:, 0]])


# -- which kind it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "kind", "best"),
    [
        (["a", "b"], "single", "accuracy"),
        ([1, 2, 3], "single", "accuracy"),
        (["1", "2"], "single", "accuracy"),
        (TOPICS, "multi", "micro_f1"),
    ],
)
def test_the_labels_tell_the_kind(labels: list[Any], kind: str, best: str) -> None:
    subject = prepared(labels)
    assert (subject.target.kind, subject.best.metric) == (kind, best)


@pytest.mark.parametrize("labels", [STARS, ["3.5", "2"], [1.0, 0.0, None]])
def test_numbers_with_decimals_are_not_guessed_at(labels: list[Any]) -> None:
    [problem] = problems_of(labels)
    assert "numbers with decimals" in problem.found
    assert "task.kind" in str(problem.fix)
    assert "regression" in str(problem.fix)


def test_a_recipe_may_call_decimals_names() -> None:
    assert prepared(["3.5", "2"], kind="single").target.outputs == ["2", "3.5"]


@pytest.mark.parametrize(
    ("labels", "options", "found"),
    [
        (TOPICS, {"class_weights": "balanced"}, "task.class_weights is of no use where the labels are of kind multi"),
        (STARS, {"kind": "regression", "labels": ["a", "b"]}, "task.labels is of no use"),
    ],
)
def test_an_option_that_the_kind_has_no_use_for_is_refused(labels: Any, options: Any, found: str) -> None:
    with pytest.raises(RecipeError, match=found):
        prepared(labels, **options)


@pytest.mark.parametrize(("labels", "kind"), [(TOPICS, "multi"), (STARS, "regression"), (["a", "b"], "single")])
def test_what_was_learned_survives_json(labels: list[Any], kind: Any) -> None:
    first = prepared(labels, kind=kind)
    second = TextClassification(TextClassificationOptions(name="text-classification"))
    second.load_state(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    assert second.best == first.best
    assert second.facts() == first.facts()


# -- several labels ------------------------------------------------------------------------------------


def test_a_row_may_have_any_of_the_labels() -> None:
    subject = prepared(TOPICS)
    assert subject.target.outputs == ["long", "sad"]
    labels = batch(subject, [*TOPICS, None, ["sad", "sad"]])["labels"]
    assert labels.tolist() == [[0, 1], [1, 1], [0, 0], [1, 0], [-100, -100], [0, 1]]
    assert subject.facts() == ["2 labels: long 2, sad 2"]


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("sad", "the label is 'sad', not a list"),
        (None, "the label is null"),
        (["sad", None], "the label has an element that is null"),
        (["sad", ""], "the label has an element that is an empty string"),
        ([["sad"]], "the label has an element that is a list"),
        ([0.5], "the label has an element that is the number 0.5"),
    ],
)
def test_labels_that_cannot_be_used_are_found_with_their_row(label: Any, found: str) -> None:
    [problem] = problems_of([*TOPICS, label])
    assert (problem.found, problem.where) == (found, "train.jsonl:5, column 'label'")


def test_a_label_that_training_never_saw_is_found() -> None:
    [problem] = problems_of(TOPICS, [["sad"], ["long", "sadd"]])
    assert problem.found == "the label 'sadd' of the evaluation rows is on no training row"
    assert problem.where == "eval.jsonl:2"
    assert "did you mean 'sad'?" in str(problem.fix)


@pytest.mark.parametrize("labels", [[["a", "b"], ["b", "a"]], [[], []]])
def test_rows_that_all_have_the_same_labels_teach_nothing(labels: list[Any]) -> None:
    [problem] = problems_of(labels)
    assert problem.where == "data.train"


def test_the_count_is_the_decisions_so_that_the_loss_of_a_coin_is_one_bit() -> None:
    subject = prepared(TOPICS)
    rows = batch(subject, [*TOPICS, None])
    model = Says(torch.zeros(5, 2))
    assert subject.count(rows) == 4 * 2
    loss = subject.loss(model, rows).total / subject.count(rows)
    torch.testing.assert_close(loss, torch.tensor(2.0).log())
    loss.backward()
    assert model.logits.grad is not None
    assert (model.logits.grad[4] == 0).all()  # the row without labels


def test_a_prediction_names_what_is_more_likely_than_not() -> None:
    subject = prepared(TOPICS)
    with torch.no_grad():
        predictions = subject.predict(Says([[3.0, -3.0], [-1.0, -1.0], [2.0, 0.5]]), batch(subject, [None] * 3))
    assert [prediction["labels"] for prediction in predictions] == [["long"], [], ["long", "sad"]]
    assert predictions[0]["scores"]["long"] == pytest.approx(1 / (1 + math.exp(-3)))
    assert json.loads(json.dumps(predictions)) == predictions


@pytest.mark.parametrize("share", [0.5, 0.05, 0.0])
def test_figures_of_several_labels_are_scikit_learns(share: float) -> None:
    generator = torch.Generator().manual_seed(3)
    truth = (torch.rand(200, 6, generator=generator) < share).float()
    truth[:, 5] = 0
    logits = (truth * 2 - 1) * 2 + 2 * torch.randn(200, 6, generator=generator)
    logits[:, 5] = -9
    figures = MultiLabelFigures(6)
    for part in torch.arange(200).split(33):
        figures.update(logits[part], truth[part])
    found, given = figures.compute(), (logits >= 0).numpy()
    assert found["exact_match"] == pytest.approx(sklearn_metrics.accuracy_score(truth, given))
    for average in ("micro", "macro"):
        expected = sklearn_metrics.f1_score(truth, given, average=average, zero_division=0.0)
        assert found[f"{average}_f1"] == pytest.approx(expected)


# -- a number ------------------------------------------------------------------------------------------


def test_the_model_sees_numbers_of_mean_zero_and_deviation_one() -> None:
    subject = prepared([*STARS, "2.5"], kind="regression")
    labels = batch(subject, [*STARS, "2.5"])["labels"]
    assert float(labels.mean()) == pytest.approx(0, abs=1e-6)
    assert float(labels.std(correction=0)) == pytest.approx(1)
    assert "from 0.5 to 4.25" in subject.facts()[0]


def test_the_loss_does_not_depend_on_the_unit() -> None:
    def loss(unit: float) -> float:
        labels = [unit * star + 7 for star in STARS]
        subject = prepared(labels, kind="regression")
        rows = batch(subject, [*labels, None])
        assert subject.count(rows) == 4
        return subject.loss(Says([[0.1], [0.2], [0.3], [0.4], [9.0]]), rows).total.item()

    assert loss(1000.0) == pytest.approx(loss(1.0), rel=1e-4)


def test_a_prediction_is_in_the_unit_of_the_labels() -> None:
    subject = prepared(STARS, kind="regression")
    perfect = batch(subject, STARS)["labels"].unsqueeze(1)
    predictions = subject.predict(Says(perfect), batch(subject, STARS))
    assert [prediction["value"] for prediction in predictions] == pytest.approx(STARS, rel=1e-5)


@pytest.mark.parametrize(
    ("label", "found"),
    [
        (None, "the label is null"),
        (float("nan"), "the label is null"),
        (float("inf"), "the label is inf"),
        (True, "the label is true, not a number"),
        ("good", "the label is 'good', not a number"),
        ("1,5", "the label is '1,5', not a number"),
        ([1.0], "the label is a list, not a number"),
        (10**400, f"the label is {10**400}, not a number"),
    ],
)
def test_labels_that_are_no_numbers_are_found_with_their_row(label: Any, found: str) -> None:
    [problem] = problems_of([*STARS, label], kind="regression")
    assert (problem.found, problem.where) == (found, "train.jsonl:5, column 'label'")


def test_a_number_that_never_changes_cannot_be_learned() -> None:
    [problem] = problems_of([2.5, 2.5, "2.5"], kind="regression")
    assert problem.found == "every training row has the label 2.5"


def test_figures_of_numbers_are_those_of_all_rows_in_their_unit() -> None:
    generator = torch.Generator().manual_seed(4)
    truth = torch.randint(6, (150,), generator=generator).float()  # with ties
    predicted = truth + torch.randn(150, generator=generator)
    figures = RegressionFigures(deviation=10.0)
    for part in torch.arange(150).split(40):
        figures.update(predicted[part].unsqueeze(1), truth[part])
    found = figures.compute()
    assert found["mse"] == pytest.approx(sklearn_metrics.mean_squared_error(truth * 10, predicted * 10), rel=1e-5)
    assert found["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(truth * 10, predicted * 10), rel=1e-5)
    stats = pytest.importorskip("scipy.stats")
    assert found["pearson"] == pytest.approx(stats.pearsonr(truth, predicted).statistic, rel=1e-5)
    assert found["spearman"] == pytest.approx(stats.spearmanr(truth, predicted).statistic, rel=1e-9)


def test_a_rank_correlation_sees_the_order_alone() -> None:
    figures = RegressionFigures(deviation=1.0)
    figures.update(torch.tensor([[0.1], [0.2], [5.0], [90.0]]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    found = figures.compute()
    assert found["spearman"] == pytest.approx(1)
    assert found["pearson"] < 0.99


def test_a_model_that_always_says_the_same_correlates_with_nothing() -> None:
    figures = RegressionFigures(deviation=1.0)
    figures.update(torch.zeros(3, 1), torch.tensor([1.0, 2.0, 3.0]))
    found = figures.compute()
    assert (found["pearson"], found["spearman"]) == (0.0, 0.0)


@pytest.mark.parametrize(("labels", "kind"), [(TOPICS, "multi"), (STARS, "regression")])
def test_metrics_do_not_depend_on_the_batches_and_have_the_figure_that_chooses(labels: list[Any], kind: Any) -> None:
    subject = prepared(labels, kind=kind)
    model = Says(torch.randn(4, len(subject.target.outputs), generator=torch.Generator().manual_seed(0)))
    rows = batch(subject, labels)

    def figures(*sizes: int) -> dict[str, float]:
        metrics = subject.metrics()
        with torch.no_grad():
            for part in torch.arange(4).split(list(sizes)):
                metrics.update(model, {key: value[part] for key, value in rows.items()})
        return metrics.compute()

    whole = figures(4)
    assert figures(1, 3) == pytest.approx(whole, rel=1e-6)
    assert subject.best.metric in whole
    assert whole["loss"] == pytest.approx(subject.loss(model, rows).total.item() / subject.count(rows), rel=1e-6)
