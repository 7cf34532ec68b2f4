"""Which rows a step sees is a function of seed and step alone."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from adaptkit.recipe import TrainingSpec
from adaptkit.training.batches import TrainingBatches, steps_per_epoch, total_steps

ROWS = [{"input_ids": [1] * (1 + index % 7), "index": index} for index in range(23)]
EPOCH = 5  # steps: four batches of 5 rows and one of 3


class Indices:
    """Collates rows to their numbers."""

    def length(self, row: dict[str, Any]) -> int:
        return len(row["input_ids"])

    def vary(self, row: dict[str, Any], generator: Random) -> dict[str, Any]:
        return row

    def collate(self, rows: list[dict[str, Any]], tokenizer: object) -> dict[str, list[int]]:
        return {"rows": [row["index"] for row in rows]}


def batches(**settings: Any) -> TrainingBatches:
    task: Any = Indices()
    return TrainingBatches(ROWS, task, None, TrainingSpec(effective_batch=5, micro_batch_tokens=8, **settings))


def test_every_row_comes_once_an_epoch() -> None:
    made = batches()
    for epoch in range(3):
        seen = [row for step in range(EPOCH) for row in made.rows_at(epoch * EPOCH + step)]
        assert sorted(seen) == list(range(23))


def test_jumping_to_a_step_gives_the_rows_that_going_there_gives() -> None:
    walked = batches()
    expected = [walked.rows_at(step) for step in range(3 * EPOCH)]
    assert [batches().rows_at(step) for step in range(3 * EPOCH)] == expected
    assert [walked.rows_at(step) for step in reversed(range(3 * EPOCH))] == expected[::-1]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(epoch: int, seed: int) -> list[list[int]]:
        return [batches(seed=seed).rows_at(epoch * EPOCH + step) for step in range(EPOCH)]

    assert order(0, 0) != order(1, 0)
    assert order(0, 0) != order(0, 1)


@pytest.mark.parametrize("step", range(EPOCH))
def test_micro_batches_hold_the_rows_of_the_step_within_the_budget(step: int) -> None:
    made = batches()
    cuts = [cut["rows"] for cut in made.at(step)]
    assert sorted(row for cut in cuts for row in cut) == sorted(made.rows_at(step))
    assert all(len(cut) * max(len(ROWS[row]["input_ids"]) for row in cut) <= 8 for cut in cuts)


@pytest.mark.parametrize(
    ("rows", "settings", "steps"),
    [
        (100, {"epochs": 3}, 12),
        (100, {"epochs": 0.5}, 2),
        (100, {"epochs": 0.001}, 1),
        (1, {"epochs": 1}, 1),
        (96, {"epochs": 1}, 3),
        (100, {"epochs": 3, "max_steps": 5}, 5),
        (100, {"epochs": 1, "max_steps": 50}, 50),
    ],
)
def test_the_steps_of_a_run(rows: int, settings: dict[str, Any], steps: int) -> None:
    assert total_steps(rows, TrainingSpec(effective_batch=32, **settings)) == steps


def test_a_short_last_batch_counts_as_a_step() -> None:
    assert [steps_per_epoch(rows, TrainingSpec(effective_batch=8)) for rows in (1, 8, 9)] == [1, 1, 2]


class Lengths:
    """Tells lengths, and as what counts the number that a row has as its index."""

    length, vary = Indices.length, Indices.vary

    def collate(self, rows: list[dict[str, Any]], tokenizer: object) -> dict[str, list[int]]:
        return {"rows": [row["index"] for row in rows]}

    def count(self, batch: dict[str, list[int]]) -> int:
        return sum(batch["rows"])


@pytest.mark.parametrize("pack_to", [None, 20])
def test_what_does_not_fit_is_cut_in_two_until_it_is_a_row(pack_to: int | None) -> None:
    task: Any = Lengths()
    settings = TrainingSpec(effective_batch=8, micro_batch_tokens=60)
    made = TrainingBatches(ROWS, task, None, settings, pack_to=pack_to)
    sizes = [made.size(0, 0)]
    while made.shrink(0, 0):
        sizes.append(made.size(0, 0))
        assert sizes[-1] <= max(made.tokens, 7)
    assert sizes == sorted(set(sizes), reverse=True), "a cut has made nothing smaller"
    assert len(sizes) > 2
    assert sizes[-1] == max(len(ROWS[row]["input_ids"]) for row in made.rows_at(0))


def test_the_longest_micro_batch_of_a_run_is_found() -> None:
    task: Any = Lengths()
    made = TrainingBatches(ROWS, task, None, TrainingSpec(effective_batch=5, micro_batch_tokens=20))
    places = [(step, index) for step in range(3 * EPOCH) for index in range(len(made.at(step)))]
    longest = max(made.size(*place) for place in places)
    step, index = made.longest(3 * EPOCH)
    assert made.size(step, index) == longest
    made.tokens = 5
    assert made.size(*made.longest(3 * EPOCH)) == 7, "a row that is longer than the budget"


def test_of_equally_long_ones_it_is_the_one_with_most_labels() -> None:
    task: Any = Lengths()
    rows = [{"input_ids": [1] * 4, "index": index} for index in range(10)]
    made = TrainingBatches(rows, task, None, TrainingSpec(effective_batch=2, micro_batch_tokens=4))
    step, index = made.longest(5)
    assert made.at(step)[index] == {"rows": [9]}
