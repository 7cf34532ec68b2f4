"""The strategy table of the README: six strategies and two baselines on the movie reviews.

    python -m benchmarks movie-reviews [--seeds 0,1,2] [--write]

The baselines are computed on the same split by the same command: TF-IDF with logistic regression, and
logistic regression on the frozen encoder's mean-pooled features. Both are deterministic, so each seed of a
strategy is paired with the same baseline figure. The strength of their regularisation is chosen on the
validation split.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adaptkit.artifact.folder import write_json
from adaptkit.comparison import Comparison, compare, mean_and_deviation
from benchmarks.report import machine, markdown_table, replace_block

RECIPE = "recipes/movie-reviews.yaml"
DATA = Path("assets/movie-reviews")
SPLITS = ("train", "validation", "test")
MODEL = "assets/minilm"
STRATEGIES = ("full", "last-layers", "linear-probe", "lora", "qlora", "prefix-tuning")
MUST_WIN = ("full", "lora", "qlora", "prefix-tuning")
RESULTS = Path("benchmarks/results/movie-reviews.json")


def main(arguments: list[str]) -> None:
    """Measures, prints the table, and with --write puts it into the README."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks movie-reviews")
    parser.add_argument("--seeds", default="0,1,2", help="of the training, separated by commas")
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="separated by commas")
    parser.add_argument("--write", action="store_true", help="replace the table in README.md")
    options = parser.parse_args(arguments)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    baselines = {"TF-IDF + logistic regression": tfidf_accuracy(), "frozen probe (mean pooling)": probe_accuracy()}
    for name, accuracy in baselines.items():
        print(f"{name}: accuracy {accuracy:.4f}")
    comparison = compare(RECIPE, options.strategies.split(","), seeds=seeds)
    table = markdown_table(*_table(comparison, baselines))
    print(table)
    _warn_of_losers(comparison, baselines)
    if options.write:
        command = f"python -m benchmarks movie-reviews --seeds {options.seeds} --write"
        over = f"mean ± standard deviation over seeds {options.seeds}" if len(seeds) > 1 else f"seed {seeds[0]}"
        caption = f"Accuracy on the test split, {over}; peak memory is that of the whole process, seconds are those of "
        caption += "the fastest seed; "
        caption += f"{machine()}; `{command}`."
        replace_block("movie-reviews", f"{table}\n\n{caption}")
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        runs = [vars(result) for result in comparison.results]
        write_json(RESULTS, {"machine": machine(), "command": command, "baselines": baselines, "runs": runs})


def read_split(split: str) -> tuple[list[str], list[str]]:
    """Returns texts and labels of a split."""
    rows = [json.loads(line) for line in (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def tfidf_accuracy() -> float:
    """Returns the test accuracy of logistic regression on TF-IDF of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(read_split("train")[0])
    return _logistic_accuracy(vectorizer.transform)


def probe_accuracy() -> float:
    """Returns the test accuracy of logistic regression on the frozen encoder's mean-pooled features."""
    return _logistic_accuracy(mean_pooled)


def _logistic_accuracy(features: Callable[[list[str]], Any]) -> float:
    """Returns the test accuracy of the logistic regression whose C is best on the validation split."""
    from sklearn.linear_model import LogisticRegression

    (train, labels), (validation, validation_labels), (test, test_labels) = map(read_split, SPLITS)
    train, validation, test = features(train), features(validation), features(test)
    models = [LogisticRegression(C=c, max_iter=5000).fit(train, labels) for c in (0.1, 1, 10, 100)]
    best = max(models, key=lambda model: model.score(validation, validation_labels))
    return float(best.score(test, test_labels))


def mean_pooled(texts: list[str], batch: int = 64) -> Any:
    """Returns features of shape ``(texts, hidden)``."""
    import numpy as np
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), AutoModel.from_pretrained(MODEL).eval()
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


def _table(comparison: Comparison, baselines: dict[str, float]) -> tuple[list[str], list[list[str]]]:
    header, *rows = comparison.rows()
    gains = [f"over {name}" for name in baselines]
    for row in rows:
        figures = [result.metrics["accuracy"] for result in comparison.of(row[0])]
        row[2:2] = [mean_and_deviation([figure - base for figure in figures]) for base in baselines.values()]
        row[0] = f"`{row[0]}`"
    empty = [""] * (len(header) - 2 + len(gains))
    rows += [[name, f"{accuracy:.3f}", *empty] for name, accuracy in baselines.items()]
    return [*header[:2], *gains, *header[2:]], rows


def _warn_of_losers(comparison: Comparison, baselines: dict[str, float]) -> None:
    best = max(baselines.values())
    for name in MUST_WIN:
        figures = [result.metrics["accuracy"] for result in comparison.of(name)]
        if figures and statistics.fmean(figures) <= best:
            print(f"{name} does not beat the baselines: {statistics.fmean(figures):.4f} against {best:.4f}")
