"""Which evaluation is the best, and when patience runs out."""

from __future__ import annotations

import json

import pytest

from adaptkit.task import Best
from adaptkit.training.best import BestStep

ACCURACY, LOSS = Best("accuracy"), Best("loss", higher_is_better=False)


def follow(best: BestStep, figures: list[float]) -> list[bool]:
    return [best.update(step, {best.rule.metric: figure, "other": 0.0}) for step, figure in enumerate(figures, 1)]


@pytest.mark.parametrize(("rule", "sign"), [(ACCURACY, 1), (LOSS, -1)])
def test_better_is_higher_or_lower_as_the_rule_says(rule: Best, sign: int) -> None:
    best = BestStep(rule)
    assert follow(best, [sign * figure for figure in (1, 3, 2, 4)]) == [True, True, False, True]
    assert best.step == 4
    assert best.metrics == {rule.metric: sign * 4, "other": 0.0}


def test_the_first_of_equals_stays_the_best() -> None:
    best = BestStep(ACCURACY)
    assert follow(best, [0.5, 0.5, 0.5]) == [True, False, False]
    assert best.step == 1


def test_the_first_evaluation_is_the_best_whatever_it_says() -> None:
    assert follow(BestStep(LOSS), [1e9]) == [True]


def test_patience_counts_evaluations_in_a_row_without_a_better_one() -> None:
    best = BestStep(ACCURACY, patience=2)
    stops = []
    for step, figure in enumerate([0.1, 0.0, 0.2, 0.1, 0.2], 1):
        best.update(step, {"accuracy": figure})
        stops.append(best.should_stop)
    assert stops == [False, False, False, False, True]


def test_without_patience_nothing_stops() -> None:
    best = BestStep(ACCURACY)
    follow(best, [1.0, *[0.0] * 50])
    assert not best.should_stop


def test_the_state_goes_through_json_and_counts_on() -> None:
    best, again = BestStep(ACCURACY, patience=2), BestStep(ACCURACY, patience=2)
    follow(best, [0.3, 0.2])
    again.load_state(json.loads(json.dumps(best.state())))
    assert again == best
    assert not again.should_stop
    assert not again.update(3, {"accuracy": 0.3})
    assert again.should_stop


def test_later_changes_of_the_figures_do_not_reach_the_best() -> None:
    best, figures = BestStep(ACCURACY), {"accuracy": 0.5}
    best.update(1, figures)
    figures["accuracy"] = 0.0
    assert best.metrics == {"accuracy": 0.5}
