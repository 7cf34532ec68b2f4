from __future__ import annotations

import random
from collections import Counter
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptkit.data.batching import effective_batches, evaluation_batches, micro_batches

LENGTHS = st.lists(st.integers(1, 300), max_size=300)


def some_lengths(rows: int) -> list[int]:
    generator = random.Random(7)
    return [generator.randint(3, 200) for _ in range(rows)]


@given(LENGTHS, st.integers(1, 40), st.integers(0, 5), st.integers(0, 5))
def test_every_row_comes_once_per_epoch_and_only_the_last_batch_is_short(lengths, effective_batch, seed, epoch):
    batches = effective_batches(lengths, effective_batch=effective_batch, seed=seed, epoch=epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == effective_batch for batch in batches[:-1])
    assert all(0 < len(batch) <= effective_batch for batch in batches)


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    lengths = some_lengths(500)
    first = effective_batches(lengths, effective_batch=8, seed=3, epoch=2)
    random.seed(99)
    assert effective_batches(lengths, effective_batch=8, seed=3, epoch=2) == first
    assert effective_batches(lengths, effective_batch=8, seed=3, epoch=3) != first
    assert effective_batches(lengths, effective_batch=8, seed=4, epoch=2) != first


def test_no_batch_of_one_epoch_is_a_batch_of_the_next():
    lengths = some_lengths(400)
    first, second = (
        {frozenset(batch) for batch in effective_batches(lengths, effective_batch=8, seed=0, epoch=epoch)}
        for epoch in (0, 1)
    )
    assert not first & second


def test_rows_of_a_batch_are_alike_in_length_so_that_little_is_padded():
    lengths = some_lengths(3200)
    batches = effective_batches(lengths, effective_batch=32, seed=0, epoch=0)
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)


def test_short_rows_come_neither_earlier_nor_later_than_long_ones():
    lengths = some_lengths(64)
    positions: dict[str, list[int]] = {"short": [], "long": []}
    for seed in range(400):
        for step, batch in enumerate(effective_batches(lengths, effective_batch=8, seed=seed, epoch=0)):
            for row in batch:
                positions["short" if lengths[row] < 100 else "long"].append(step)
    # Standard error: 2.3 steps / sqrt(400 epochs) = 0.11.
    assert mean(positions["short"]) == pytest.approx(mean(positions["long"]), abs=0.5)


def test_every_row_is_as_likely_as_any_other_to_be_in_the_short_last_batch():
    lengths = sorted(some_lengths(20))
    last = Counter(
        row for seed in range(1000) for row in effective_batches(lengths, effective_batch=8, seed=seed, epoch=0)[-1]
    )
    # 4 of 20 rows: 200 expected, standard deviation 12.6.
    assert set(last) == set(range(20))
    assert all(140 < count < 260 for count in last.values())


@given(LENGTHS, st.integers(1, 2000))
def test_a_micro_batch_keeps_to_the_token_budget_unless_it_is_one_row(lengths, budget):
    batches = micro_batches(range(len(lengths)), lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


def test_micro_batches_hold_the_indices_they_were_given():
    assert micro_batches([4, 2, 9], [0, 0, 5, 0, 7, 0, 0, 0, 0, 6], 14) == [[4, 9], [2]]


def test_the_longest_rows_come_first_so_that_what_does_not_fit_fails_at_once():
    lengths = some_lengths(100)
    flat = [lengths[row] for batch in evaluation_batches(lengths, 512) for row in batch]
    assert flat == sorted(lengths, reverse=True)
