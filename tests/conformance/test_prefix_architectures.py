"""Prefix tuning on every architecture of transformers that can be built small."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.prefix_coverage import REFUSED, WORKS, Outcome, walk

# What transformers itself cannot checkpoint; nothing of the prefix is at fault.
WITHOUT_CHECKPOINTING = "the model has no gradient checkpointing"


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return list(walk())


def test_a_prefix_trains_under_gradient_checkpointing_on_more_than_a_hundred_architectures(
    outcomes: list[Outcome],
) -> None:
    assert Counter(outcome.verdict for outcome in outcomes)[WORKS] >= 100


def test_no_architecture_takes_a_prefix_in_silence_that_does_not_work(outcomes: list[Outcome]) -> None:
    silent = [outcome for outcome in outcomes if outcome.verdict not in (WORKS, REFUSED, WITHOUT_CHECKPOINTING)]
    assert not silent
