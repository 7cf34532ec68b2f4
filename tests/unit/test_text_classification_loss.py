"""What a batch of text classification is, and what its loss and figures are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor, nn

from adaptkit.errors import DataError
from adaptkit.tasks._labels import balanced_weights
from adaptkit.tasks.classification.confusion import ConfusionMatrix
from adaptkit.tasks.text_classification import TextClassification, TextClassificationOptions

TOKENIZER = SimpleNamespace(pad_token_id=9)


def task(counts: list[int], **options) -> TextClassification:
    subject = TextClassification(TextClassificationOptions(name="text-classification", **options))
    names = [f"class {index}" for index in range(len(counts))]
    subject.load_state({"kind": "single", "labels": names, "counts": counts, "paired": False})
    return subject


class TokenCounter(nn.Module):
    """Logits from how often each token occurs where the mask is 1."""

    def __init__(self, classes: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(10, classes, generator=generator).to(dtype))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=(self.weight[input_ids] * attention_mask.unsqueeze(-1)).sum(1))


def random_features(rows: int, classes: int) -> list[dict[str, object]]:
    generator = torch.Generator().manual_seed(1)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    return [{"input_ids": draw(9, 1 + int(draw(6, 1))).tolist(), "label": int(draw(classes, 1))} for _ in range(rows)]


def test_padding_is_on_the_right_and_masked():
    features = [{"input_ids": [1, 2, 3], "label": 1}, {"input_ids": [4]}]
    batch = task([1, 1]).collate(features, TOKENIZER)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, -100]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_the_second_text_keeps_its_type():
    features = [{"input_ids": [1, 2], "token_type_ids": [0, 1]}, {"input_ids": [3], "token_type_ids": [1]}]
    assert task([1, 1]).collate(features, TOKENIZER)["token_type_ids"].tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_any_cut_into_micro_batches_gives_the_same_loss_and_count(class_weights):
    subject, model = task([5, 90, 5], class_weights=class_weights), TokenCounter(3)
    features = random_features(24, 3)
    whole = subject.collate(features, TOKENIZER)
    parts = [subject.collate(part, TOKENIZER) for part in (features[:5], features[5:6], features[6:])]
    torch.testing.assert_close(sum(subject.loss(model, part).total for part in parts), subject.loss(model, whole).total)
    assert sum(subject.count(part) for part in parts) == pytest.approx(subject.count(whole))


def test_the_loss_of_a_uniform_guess_is_the_logarithm_of_the_classes():
    subject, model = task([1] * 4), TokenCounter(4)
    nn.init.zeros_(model.weight)
    batch = subject.collate(random_features(7, 4), TOKENIZER)
    mean = subject.loss(model, batch).total / subject.count(batch)
    torch.testing.assert_close(mean, torch.tensor(4.0).log())


def test_rows_without_a_label_count_for_nothing():
    subject, model = task([1, 1]), TokenCounter(2)
    features = random_features(6, 2)
    bare = [{"input_ids": [1, 1]}, {"input_ids": [2]}]
    with_bare, without = (subject.collate(rows, TOKENIZER) for rows in (features + bare, features))
    assert subject.count(with_bare) == subject.count(without) == 6
    torch.testing.assert_close(subject.loss(model, with_bare).total, subject.loss(model, without).total)


def test_balanced_weights_let_every_class_count_alike_with_mean_one():
    counts = [900, 90, 10]
    weights = balanced_weights(counts)
    shares = [weight * count for weight, count in zip(weights, counts, strict=True)]
    assert shares == pytest.approx([shares[0]] * 3)
    assert sum(shares) / sum(counts) == pytest.approx(1)
    assert balanced_weights([5, 5]) == [1, 1]
    assert balanced_weights([6, 0, 2])[1] == 1


def test_the_count_of_balanced_training_rows_is_their_number():
    subject = task([6, 2], class_weights="balanced")
    features = [{"input_ids": [1], "label": label} for label in [0] * 6 + [1] * 2]
    assert subject.count(subject.collate(features, TOKENIZER)) == pytest.approx(8)


def test_the_loss_is_computed_in_fp32_whatever_the_model_computes_in():
    subject, model = task([1, 1]), TokenCounter(2, torch.bfloat16)
    assert subject.loss(model, subject.collate(random_features(4, 2), TOKENIZER)).total.dtype == torch.float32


@pytest.mark.parametrize(("classes", "drawn"), [(2, 2), (5, 5), (7, 3), (3, 1)])
def test_figures_of_the_confusion_matrix_are_those_of_the_rows(classes, drawn):
    generator = torch.Generator().manual_seed(classes)
    truth = torch.randint(drawn, (200,), generator=generator)
    noise = torch.randint(drawn, (200,), generator=generator)
    predicted = torch.where(torch.rand(200, generator=generator) < 0.6, truth, noise)
    matrix = ConfusionMatrix(classes)
    for part in torch.arange(200).split(33):
        matrix.update(torch.nn.functional.one_hot(predicted[part], classes).float(), truth[part])
    figures = matrix.compute()
    assert figures["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(truth, predicted))
    assert figures["macro_f1"] == pytest.approx(sklearn_metrics.f1_score(truth, predicted, average="macro"))
    if drawn > 1:
        expected = sklearn_metrics.matthews_corrcoef(truth, predicted)
        assert figures["matthews_correlation"] == pytest.approx(expected)
    else:
        assert figures["matthews_correlation"] == 0


def test_metrics_do_not_depend_on_the_batches_and_agree_with_loss_and_prediction():
    subject, model = task([1, 2, 3], class_weights="balanced"), TokenCounter(3)
    features = random_features(40, 3)
    whole = subject.collate(features, TOKENIZER)
    metrics = subject.metrics()
    with torch.no_grad():
        for begin in range(0, 40, 7):
            metrics.update(model, subject.collate(features[begin : begin + 7], TOKENIZER))
        figures = metrics.compute()
        loss = subject.loss(model, whole).total.item() / subject.count(whole)
        names = [prediction["label"] for prediction in subject.predict(model, whole)]
    right = [name == subject.target.outputs[feature["label"]] for name, feature in zip(names, features, strict=True)]
    assert figures["loss"] == pytest.approx(loss, rel=1e-5)
    assert figures["accuracy"] == pytest.approx(sum(right) / 40)
    assert set(figures) == {"loss", "accuracy", "macro_f1", "matthews_correlation"}
    assert subject.best.metric in figures


def test_figures_without_a_single_label_are_an_error_not_a_zero():
    metrics = task([1, 1]).metrics()
    metrics.update(TokenCounter(2), task([1, 1]).collate([{"input_ids": [1]}], TOKENIZER))
    with pytest.raises(DataError, match="nothing can be measured"):
        metrics.compute()


def test_a_prediction_names_the_most_probable_label():
    subject, model = task([1, 1, 1]), TokenCounter(3)
    with torch.no_grad():
        predictions = subject.predict(model, subject.collate(random_features(5, 3), TOKENIZER))
    assert len(predictions) == 5
    for prediction in predictions:
        assert list(prediction["scores"]) == subject.target.outputs
        assert sum(prediction["scores"].values()) == pytest.approx(1, abs=1e-6)
        assert prediction["label"] == max(prediction["scores"], key=prediction["scores"].__getitem__)
