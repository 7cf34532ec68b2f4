"""The main job on the real model and the real reviews, small: every strategy learns, is saved, and answers again."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from rich.console import Console

import adaptkit
from adaptkit.registry import load_registry
from adaptkit.runner import resolve

ASSETS = Path(__file__).parents[2] / "assets"
REVIEWS = ASSETS / "movie-reviews"
STRATEGIES = ("full", "last-layers", "linear-probe", "lora", "qlora", "prefix-tuning")

pytestmark = [
    pytest.mark.assets,
    pytest.mark.skipif(not (REVIEWS / "asset.json").is_file(), reason="`make assets` has not been run"),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 320 training rows and 100 held-out ones."""
    folder = tmp_path_factory.mktemp("reviews")
    for split, count in (("train", 320), ("validation", 100)):
        with (REVIEWS / f"{split}.jsonl").open(encoding="utf-8") as file:
            (folder / f"{split}.jsonl").write_text("".join(itertools.islice(file, count)), encoding="utf-8")
    return folder


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_learns_from_real_reviews_and_answers_the_same_when_loaded(
    strategy: str, rows: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
model: {ASSETS / "minilm"}
task: text-classification
data: {{train: {rows / "train.jsonl"}, evaluation: {rows / "validation.jsonl"}}}
strategy: {strategy}
training: {{epochs: 2, effective_batch: 16, micro_batch_tokens: 2048}}
output: {tmp_path / "run"}
""",
        encoding="utf-8",
    )
    run = adaptkit.run(recipe, console=Console(quiet=True))
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in log if "train/loss" in line]
    assert sum(losses[-8:]) < 0.97 * sum(losses[:8])
    assert run.metrics["eval/accuracy"] > 0.55
    again = adaptkit.load(tmp_path / "run")
    assert again.evaluate() == pytest.approx(
        {name.removeprefix("eval/"): value for name, value in run.metrics.items()}, abs=1e-6
    )
    texts = ["A masterpiece.", "A dull, lifeless mess of a film that goes nowhere and takes its time over it."]
    for together, text in zip(again.predict(texts), texts, strict=True):
        # As far apart as bf16 arithmetic may be, which is what a machine that is fast at it chooses.
        assert together["scores"] == pytest.approx(again.predict([text])[0]["scores"], abs=2e-3)


def test_every_strategy_brings_a_learning_rate_that_validate_shows() -> None:
    registry = load_registry()
    recipe = Path(__file__).parents[2] / "recipes" / "movie-reviews.yaml"
    for strategy in STRATEGIES:
        overrides = [f"strategy={strategy}", f"model={ASSETS / 'minilm'}"]
        assert resolve(recipe, overrides, registry).training.learning_rate is not None
