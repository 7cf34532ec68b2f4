"""What needs no fine-tuning: logistic regression on counted words, or on a frozen encoder's features.

Both are deterministic. The strength of their regularisation is chosen on the validation split.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

SPLITS = ("train", "validation", "test")


def read_split(data: Path, split: str) -> tuple[list[str], list[str]]:
    """Returns texts and labels of a split."""
    rows = [json.loads(line) for line in (data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def tfidf_accuracy(data: Path) -> float:
    """Returns the test accuracy of logistic regression on TF-IDF of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(read_split(data, "train")[0])
    return _logistic_accuracy(data, vectorizer.transform)


def probe_accuracy(data: Path, model: str) -> float:
    """Returns the test accuracy of logistic regression on the frozen encoder's mean-pooled features."""
    return _logistic_accuracy(data, lambda texts: mean_pooled(texts, model))


def _logistic_accuracy(data: Path, features: Callable[[list[str]], Any]) -> float:
    """Returns the test accuracy of the logistic regression whose C is best on the validation split."""
    from sklearn.linear_model import LogisticRegression

    (train, labels), (validation, validation_labels), (test, test_labels) = (
        read_split(data, split) for split in SPLITS
    )
    train, validation, test = features(train), features(validation), features(test)
    models = [LogisticRegression(C=c, max_iter=5000).fit(train, labels) for c in (0.1, 1, 10, 100)]
    best = max(models, key=lambda model: model.score(validation, validation_labels))
    return float(best.score(test, test_labels))


def mean_pooled(texts: list[str], name: str, batch: int = 64) -> Any:
    """Returns features of shape ``(texts, hidden)``."""
    import numpy as np
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name).eval()
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    features = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        inputs = tokenizer([texts[row] for row in rows], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        features[rows] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    return features
