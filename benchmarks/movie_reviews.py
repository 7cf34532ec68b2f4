"""The strategy table of the README: six strategies and two baselines on the movie reviews.

    python -m benchmarks movie-reviews [--seeds 0,1,2] [--write]

The baselines are computed on the same split by the same command: TF-IDF with logistic regression, and
logistic regression on the frozen encoder's mean-pooled features. Both are deterministic, so each seed of a
strategy is paired with the same baseline figure. The strength of their regularisation is chosen on the
validation split.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from adaptkit.artifact.folder import write_json
from adaptkit.comparison import Comparison, compare, mean_and_deviation
from benchmarks.baselines import probe_accuracy, tfidf_accuracy
from benchmarks.report import machine, markdown_table, replace_block

RECIPE = "recipes/movie-reviews.yaml"
DATA = Path("assets/movie-reviews")
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
    baselines = {
        "TF-IDF + logistic regression": tfidf_accuracy(DATA),
        "frozen probe (mean pooling)": probe_accuracy(DATA, MODEL),
    }
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
