"""Packing puts every row into a sequence once, and forgets where none of them begins."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptkit.data.packing import collate_packed, pack
from adaptkit.recipe import TrainingSpec
from adaptkit.task import IGNORE_INDEX, Features
from adaptkit.training.batches import TrainingBatches

LOADS_TORCH = settings(deadline=None)
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=40)


def rows(lengths: list[int]) -> list[Features]:
    """Returns rows in which every token occurs once, and only the second half of each is learned."""
    made: list[Features] = []
    first = 1
    for length in lengths:
        ids = [*range(first, first + length)]
        made.append({"input_ids": ids, "labels": [IGNORE_INDEX] * (length // 2) + ids[length // 2 :]})
        first += length
    return made


def unpacked(sequence: Features) -> list[Features]:
    """Cuts a sequence where its positions begin again."""
    starts = [index for index, position in enumerate(sequence["position_ids"]) if position == 0]
    ends = [*starts[1:], len(sequence["input_ids"])]
    return [
        {key: sequence[key][start:end] for key in ("input_ids", "labels")}
        for start, end in zip(starts, ends, strict=True)
    ]


def learned(row: Features) -> Features:
    """Returns a row whose first token, which nothing predicts, has no label."""
    return {"input_ids": row["input_ids"], "labels": [IGNORE_INDEX, *row["labels"][1:]]}


@given(LENGTHS, st.integers(1, 60))
def test_every_row_comes_once_and_whole_with_positions_of_its_own(lengths: list[int], length: int) -> None:
    every = rows(lengths)
    found = [row for sequence in pack(every, length) for row in unpacked(sequence)]
    assert sorted(found, key=lambda row: row["input_ids"]) == [learned(row) for row in every]


@given(LENGTHS, st.integers(1, 60))
def test_positions_count_each_row_from_zero(lengths: list[int], length: int) -> None:
    for sequence in pack(rows(lengths), length):
        for row in unpacked(sequence):
            start = sequence["input_ids"].index(row["input_ids"][0])
            positions = sequence["position_ids"][start : start + len(row["input_ids"])]
            assert positions == [*range(len(row["input_ids"]))]


@given(LENGTHS, st.integers(1, 60))
def test_a_sequence_is_no_longer_than_allowed_unless_it_is_one_long_row(lengths: list[int], length: int) -> None:
    for sequence in pack(rows(lengths), length):
        assert len(sequence["input_ids"]) <= length or len(unpacked(sequence)) == 1


@given(LENGTHS, st.integers(40, 80))
def test_no_two_sequences_would_fit_into_one(lengths: list[int], length: int) -> None:
    sizes = sorted(len(sequence["input_ids"]) for sequence in pack(rows(lengths), length))
    assert len(sizes) < 2 or sizes[0] + sizes[1] > length


@LOADS_TORCH
@given(LENGTHS)
def test_padding_is_never_learned_and_never_follows_a_row(lengths: list[int]) -> None:
    sequences = pack(rows(lengths), 60)
    batch = collate_packed(sequences)
    longest = max(len(sequence["input_ids"]) for sequence in sequences)
    assert all(tensor.shape == (len(sequences), longest) for tensor in batch.values())
    for index, sequence in enumerate(sequences):
        end = len(sequence["input_ids"])
        assert all(batch[key][index, :end].tolist() == sequence[key] for key in batch)
        assert set(batch["labels"][index, end:].tolist()) <= {IGNORE_INDEX}
        assert set(batch["position_ids"][index, end:].tolist()) <= {0}


class Packed:
    """A task whose rows may share a sequence."""

    def length(self, row: Features) -> int:
        return len(row["input_ids"])

    def vary(self, row: Features, generator: Random) -> Features:
        return row


def steps(every: list[Features], length: int, budget: int) -> list[list[dict[str, Any]]]:
    """Returns the micro-batches of every step of an epoch."""
    task: Any = Packed()
    training = TrainingSpec(effective_batch=5, micro_batch_tokens=budget, packing=True)
    made = TrainingBatches(every, task, None, training, pack_to=length)
    return [made.at(step) for step in range(made.steps_per_epoch)]


@LOADS_TORCH
@given(LENGTHS, st.integers(1, 60), st.integers(1, 200))
def test_an_epoch_has_every_token_once(lengths: list[int], length: int, budget: int) -> None:
    every = rows(lengths)
    seen = [token for step in steps(every, length, budget) for batch in step for token in batch["input_ids"].flatten()]
    assert sorted(int(token) for token in seen if token) == [*range(1, 1 + sum(lengths))]


@LOADS_TORCH
@given(LENGTHS, st.integers(1, 60), st.integers(1, 200))
def test_a_micro_batch_keeps_to_the_length_and_to_the_budget_unless_it_is_one_long_row(
    lengths: list[int], length: int, budget: int
) -> None:
    for step in steps(rows(lengths), length, budget):
        for batch in step:
            sequences, longest = batch["input_ids"].shape
            alone = sequences == 1 and int((batch["position_ids"] == 0).sum()) == 1
            assert alone or longest <= length or longest in lengths
            assert alone or sequences * longest <= budget


@pytest.mark.parametrize("budget", [64, 4096])
def test_a_step_packs_its_own_rows_alone(budget: int) -> None:
    every = rows([7, 3, 9, 2, 12, 5, 8, 4, 6, 10, 1])
    for step in steps(every, 32, budget):
        tokens = {int(token) for batch in step for token in batch["input_ids"].flatten() if token}
        members = [row for row in every if row["input_ids"][0] in tokens]
        assert tokens == {token for row in members for token in row["input_ids"]}
        assert len(members) in (5, 1)
