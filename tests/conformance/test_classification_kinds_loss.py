"""The gradient of an effective batch is that of its loss, for every kind of label, however the batch is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import texts
import tiny
import torch
from torch import Tensor

from adaptkit.models.heads.classifier import load_classifier
from adaptkit.task import Row, Splits
from adaptkit.tasks.text_classification import TextClassification, TextClassificationOptions

LABELS: dict[str, Sequence[Any]] = {
    "single": ["a", "b", "c", "a", "b"],
    "multi": [["a"], ["a", "b"], [], ["c"], ["b"]],
    "regression": [0.5, 2.0, 3.5, -1.0, 7.25],
}
LINES = ["Full fathom five", "of his bones are coral made; those are pearls", "nothing", "ding-dong", "a sea-change"]


@pytest.mark.parametrize("manner", texts.FAMILIES)
@pytest.mark.parametrize("kind", LABELS)
def test_the_gradient_does_not_depend_on_the_cut_into_micro_batches(kind: Any, manner: str) -> None:
    rows = [Row({"text": text, "label": label}, "") for text, label in zip(LINES, LABELS[kind], strict=True)]
    task = TextClassification(TextClassificationOptions(name="text-classification", kind=kind))
    task.prepare(Splits(rows), texts.DATA)
    source = texts.source(manner)
    base = load_classifier(
        source, numerics=tiny.numerics(), seed=0, labels=task.target.outputs, pooling="auto", dropout=0.0
    )
    features = task.features(rows, texts.DATA, source.tokenizer, 64)
    whole = task.count(task.collate(features, source.tokenizer))

    def gradient(*sizes: int) -> Tensor:
        base.module.zero_grad()
        rest = list(features)
        for size in sizes:
            part, rest = rest[:size], rest[size:]
            (task.loss(base.module, task.collate(part, source.tokenizer)).total / whole).backward()
        gradients = [parameter.grad for parameter in base.module.parameters() if parameter.grad is not None]
        return torch.cat([gradient.flatten() for gradient in gradients]).clone()

    once = gradient(5)
    assert once.norm() > 0
    for cut in ((1, 1, 1, 1, 1), (2, 3), (4, 1)):
        assert (gradient(*cut) - once).norm() / once.norm() <= 2e-6
