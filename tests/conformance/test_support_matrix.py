"""The support matrix has no fault, and the page in the documentation says what happens when a cell is run."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from adaptkit.registry import load_registry
from benchmarks.cells import FAMILIES, FAULT, PRECISIONS, WORKS, Cell, Outcome, Trials, all_cells, rows_by_task
from benchmarks.matrix import DOCUMENT, RESULTS, as_json, dump, from_json, report

ROOT = Path(__file__).parents[2]
RECORDED: dict[str, Any] = json.loads((ROOT / RESULTS).read_text(encoding="utf-8"))
OUTCOMES = from_json(RECORDED)


def one_of_each(outcomes: Iterable[Outcome], kind: Callable[[Outcome], object], generator: random.Random) -> list[Cell]:
    """Returns a cell of each kind, drawn anew for each."""
    kinds: dict[object, list[Cell]] = defaultdict(list)
    for outcome in outcomes:
        kinds[kind(outcome)].append(outcome.cell)
    return [generator.choice(cells) for cells in kinds.values()]


def sample() -> list[Cell]:
    """Returns a cell that works for each task, family and precision, and three for each reason of a refusal."""
    generator = random.Random(0)
    works = [outcome for outcome in OUTCOMES if outcome.state == WORKS]
    others = [outcome for outcome in OUTCOMES if outcome.state != WORKS]
    cells = one_of_each(
        works, lambda outcome: (outcome.cell.task, outcome.cell.family, outcome.cell.precision), generator
    )
    for _ in range(3):
        cells += one_of_each(others, lambda outcome: outcome.reason, generator)
    return list(dict.fromkeys(cells))


SAMPLE = sample()


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(tmp_path_factory.mktemp("matrix"))


def test_no_combination_is_untested() -> None:
    assert {outcome.cell for outcome in OUTCOMES} == set(all_cells(load_registry()))
    assert {cell.task for cell in all_cells(load_registry())} == set(load_registry().tasks)


def test_every_combination_works_or_is_refused_with_a_reason() -> None:
    assert [outcome for outcome in OUTCOMES if outcome.state == FAULT] == []
    assert [outcome for outcome in OUTCOMES if outcome.state != WORKS and not outcome.reason] == []


def test_every_strategy_works_somewhere() -> None:
    assert {outcome.cell.strategy for outcome in OUTCOMES if outcome.state == WORKS} == {
        o.cell.strategy for o in OUTCOMES
    }


def test_the_sample_has_every_task_family_and_precision() -> None:
    assert {cell.task for cell in SAMPLE} == set(rows_by_task())
    assert {cell.family for cell in SAMPLE} == set(FAMILIES)
    assert {cell.precision for cell in SAMPLE} == set(PRECISIONS)


@pytest.mark.parametrize("cell", SAMPLE, ids=lambda cell: f"{cell.strategy}-{cell.family}-{cell.task}-{cell.precision}")
def test_a_cell_does_what_the_documentation_says(trials: Trials, cell: Cell) -> None:
    recorded = next(outcome for outcome in OUTCOMES if outcome.cell == cell)
    assert trials.outcome(cell) == recorded


def test_the_page_is_the_one_of_the_recorded_results() -> None:
    assert report(RECORDED) in (ROOT / DOCUMENT).read_text(encoding="utf-8")


def test_the_recorded_results_are_read_as_they_were_written() -> None:
    assert json.loads(dump(RECORDED)) == RECORDED
    assert as_json(OUTCOMES).items() <= RECORDED.items()


def test_a_fault_is_told_and_does_not_pass_for_a_refusal(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptkit.strategy import Strategy

    monkeypatch.setattr(Strategy, "load_state", lambda *_: None)
    outcome = trials.outcome(Cell("lora", "encoder", "text-classification", "fp32"))
    assert outcome.state == FAULT
    assert "after loading" in outcome.reason
