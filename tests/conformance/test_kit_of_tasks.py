"""The conformance kit of tasks and formats: what is broken is noticed, and what adaptkit brings itself passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import broken_tasks as broken
import pytest

from adaptkit.registry import load_registry
from adaptkit.testing import (
    FORMAT_CHECKS,
    TASK_CHECKS,
    NotApplicable,
    check_format,
    check_task,
    parametrize_with_task_checks,
)
from adaptkit.testing.format_checks import FormatSubject
from adaptkit.testing.rows import TASK_OPTIONS, rows_by_task
from adaptkit.testing.task_subject import TaskSubject

REGISTRY = load_registry()
ROWS = rows_by_task()
CHAT = [
    {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
    for row in ROWS["sft"]
]
QUESTIONS = {"masked-lm": "the film was [MASK]", "span-corruption": "the film <extra_id_0> good"}
BAD_ROW = {"text": "", "label": "good"}
HEADLINES = [{"headline": row["text"], "topic": row["label"]} for row in ROWS["text-classification"]]


def task_subject(task: Any, base: str = "bert") -> TaskSubject:
    rows = ROWS["causal-lm" if base == "llama" else "text-classification"]
    options = TASK_OPTIONS["causal-lm"] if base == "llama" else {}
    return TaskSubject(task, rows, [BAD_ROW], options=options, base_name=base)


BROKEN_TASKS: dict[str, tuple[Any, str]] = {
    "check_task_contract": (broken.ShoutingTask, "bert"),
    "check_task_options": (broken.LooseTask, "bert"),
    "check_task_import": (broken.MeanLoss, "bert"),  # That module imports torch.
    "check_bad_rows": (broken.Careless, "bert"),
    "check_hostile_rows": (broken.Trusting, "bert"),
    "check_state": (broken.Forgetful, "bert"),
    "check_features": (broken.TensorFeatures, "bert"),
    "check_collate": (broken.PadsInFront, "bert"),
    "check_loss_is_a_sum": (broken.MeanLoss, "bert"),
    "check_loss_has_a_gradient": (broken.DetachedLoss, "bert"),
    "check_variation": (broken.Restless, "bert"),
    "check_metrics": (broken.Uneven, "bert"),
    "check_predictions": (broken.SkipsTheLast, "bert"),
    "check_head": (broken.RandomHead, "bert"),
    "check_packed_rows": (broken.CrowdedFeatures, "llama"),
    "check_learning": (broken.Backwards, "bert"),
}
BROKEN_FORMATS: dict[str, type[broken.Headlines]] = {
    "check_format_contract": broken.ShoutingFormat,
    "check_format_import": broken.Headlines,  # Its module imports torch.
    "check_offered": broken.UnwantedFormat,
    "check_recognised": broken.Ambiguous,
    "check_conversion": broken.Greedy,
    "check_converted_rows": broken.Emptying,
    "check_hostile_values": broken.TrustingFormat,
}


def test_there_is_something_broken_for_every_check() -> None:
    assert list(BROKEN_TASKS) == [check.name for check in TASK_CHECKS]
    assert list(BROKEN_FORMATS) == [check.name for check in FORMAT_CHECKS]


def assert_noticed(check: Callable[[Any], None], subject: object) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - what is raised by what is broken counts too
        check(subject)
    assert not isinstance(caught.value, NotApplicable), caught.value
    assert str(caught.value)


@pytest.mark.parametrize("check", TASK_CHECKS, ids=lambda check: check.name)
def test_a_check_notices_the_task_that_is_broken_in_its_way(check: Any) -> None:
    assert_noticed(check, task_subject(*BROKEN_TASKS[check.name]))


@pytest.mark.parametrize("check", FORMAT_CHECKS, ids=lambda check: check.name)
def test_a_check_notices_the_format_that_is_broken_in_its_way(check: Any) -> None:
    rows = HEADLINES if check.name != "check_recognised" else ROWS["text-classification"]
    assert_noticed(check, FormatSubject(BROKEN_FORMATS[check.name], rows))


# -- what adaptkit brings itself -----------------------------------------------------------------------


def built_in(name: str) -> Any:
    cls = REGISTRY.task(name)
    return cls(cls.Options(name=name, **TASK_OPTIONS.get(name, {})))


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_built_in_tasks_pass(name: str) -> None:
    questions = [{"text": QUESTIONS[name]}] if name in QUESTIONS else []
    rows = CHAT if name == "sft" else ROWS[name]
    outcomes = check_task(built_in(name), rows, questions=questions)
    assert {outcome.state for outcome in outcomes} == {"passed", "not applicable"}


FORMATS = {
    "alpaca": [{"instruction": "Say it.", "input": "the film", "output": "good"}],
    "prompt-completion": [{"prompt": "the film", "completion": "good"}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "the film"}, {"from": "gpt", "value": "good"}]}],
    "summarization": [{"document": "the film was good", "summary": "good"}],
    "words": [{"tokens": ["the", "film"]}],
}


def test_every_built_in_format_is_tried() -> None:
    assert set(FORMATS) == set(REGISTRY.formats)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_built_in_formats_pass(name: str) -> None:
    rows = [dict(row) for row in FORMATS[name] * 2]
    assert {outcome.state for outcome in check_format(REGISTRY.format_classes()[name], rows)} == {"passed"}


def test_the_decorator_makes_a_test_of_every_check() -> None:
    mark = parametrize_with_task_checks(built_in("masked-lm"), ROWS["masked-lm"])
    assert {case.id.partition("-")[0] for case in mark.args[1]} == {check.name for check in TASK_CHECKS}
