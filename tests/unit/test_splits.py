"""The rows of a run: sources mixed by weight, and shares that a row belongs to by what it says alone."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from adaptkit.data.splits import fingerprints, load_rows, load_split, load_splits
from adaptkit.errors import DataError
from adaptkit.recipe import DataSpec
from adaptkit.registry import load_registry
from adaptkit.task import Row

REGISTRY = load_registry()
TASK: Any = REGISTRY.make_task(REGISTRY.task_options("text-classification")(name="text-classification"))
CHAT: Any = REGISTRY.make_task(REGISTRY.task_options("sft")(name="sft"))
FORMATS = REGISTRY.format_classes()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(count: int, prefix: str = "text", **extra: Any) -> list[dict[str, Any]]:
    return [{"text": f"{prefix} {number}", "label": number % 2, **extra} for number in range(count)]


def write(name: str, values: Iterable[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return name


def splits(task: Any = TASK, **data: Any) -> dict[str, list[Row]]:
    found = load_splits(DataSpec(**data), task, FORMATS)
    return {"train": list(found.train), "evaluation": list(found.evaluation), "test": list(found.test)}


def texts(rows: Iterable[Row]) -> list[str]:
    return [row.values["text"] for row in rows]


def problems(task: Any = TASK, **data: Any) -> Any:
    with pytest.raises(DataError) as caught:
        splits(task, **data)
    return caught.value.problems


# -- shares --------------------------------------------------------------------------------------------


def test_shares_divide_the_training_rows_among_the_splits() -> None:
    found = splits(train=write("a.jsonl", rows(2000)), evaluation=0.1, test=0.2)
    assert Counter(text for part in found.values() for text in texts(part)) == Counter(f"text {n}" for n in range(2000))
    # Three standard deviations of a binomial share of 2,000 rows.
    assert abs(len(found["evaluation"]) - 200) < 3 * (2000 * 0.1 * 0.9) ** 0.5
    assert abs(len(found["test"]) - 400) < 3 * (2000 * 0.2 * 0.8) ** 0.5


def test_a_row_goes_the_same_way_in_another_order_and_among_other_rows() -> None:
    before = splits(train=write("a.jsonl", rows(300)), test=0.2)
    after = splits(train=write("b.jsonl", [*reversed(rows(300)), *rows(300, "new")]), test=0.2)
    assert set(texts(before["test"])) == {text for text in texts(after["test"]) if text.startswith("text")}


def test_neither_share_moves_the_rows_of_the_other() -> None:
    source = write("a.jsonl", rows(300))
    alone = splits(train=source, test=0.2)
    both = splits(train=source, test=0.2, evaluation=0.3)
    wider = splits(train=source, test=0.4, evaluation=0.3)
    assert alone["test"] == both["test"]
    assert both["evaluation"] == wider["evaluation"]
    assert set(texts(both["test"])) < set(texts(wider["test"]))


def test_equal_texts_never_stand_on_two_sides_whatever_their_labels_and_other_columns() -> None:
    values = [{"text": f"text {n % 50}", "label": n % 3, "id": n} for n in range(600)]
    found = splits(train=write("a.jsonl", values), evaluation=0.3, test=0.3)
    train, evaluation, test = (set(texts(part)) for part in found.values())
    assert train
    assert evaluation
    assert test
    assert train.isdisjoint(evaluation | test)
    assert evaluation.isdisjoint(test)


def test_rows_of_a_group_stay_together() -> None:
    values = [{"text": f"text {n}", "label": 0, "play": f"play {n % 40}"} for n in range(800)]
    found = splits(train=write("a.jsonl", values), evaluation=0.3, test=0.3, group="play")
    plays = [{int(text.split()[1]) % 40 for text in texts(part)} for part in found.values()]
    assert sum(len(one) for one in plays) == len(set().union(*plays)) == 40
    assert [len(part) for part in found.values()] == [20 * len(one) for one in plays]


def test_a_group_may_be_a_key_of_an_object() -> None:
    values = [{"text": f"text {n}", "label": 0, "meta": {"author": n % 20}} for n in range(200)]
    found = splits(train=write("a.jsonl", values), test=0.4, group="meta.author")
    sides = [{int(text.split()[1]) % 20 for text in texts(found[part])} for part in ("train", "test")]
    assert not sides[0] & sides[1]


def test_a_group_that_rows_do_not_have_is_an_error() -> None:
    source = write("a.jsonl", rows(20, author="x"))
    [problem] = problems(train=source, test=0.5, group="writer")
    assert problem.found == "there is no column 'writer' to keep rows together by"
    assert problem.allowed == "'text', 'label', 'author'"
    found = problems(train=write("b.jsonl", [*rows(2, author="x"), *rows(2, author=None)]), test=0.5, group="author")
    assert [problem.where for problem in found] == ["b.jsonl:3\nb.jsonl:4"]


def test_a_share_that_takes_no_row_is_an_error() -> None:
    [problem] = problems(train=write("a.jsonl", rows(30, author="only one")), test=0.1, group="author")
    assert problem.found == "of so few groups none falls into the share for test"
    assert problem.fix


def test_shares_that_leave_nothing_to_train_on_are_an_error() -> None:
    [problem] = problems(train=write("a.jsonl", rows(1)), test=0.999999)
    assert problem.found == "the shares and weights leave no row to train on"


def test_a_whole_source_may_fall_into_a_share() -> None:
    sources = [write(f"{n}.jsonl", rows(2, f"play {n}", play=n)) for n in range(20)]
    found = splits(train=sources, test=0.4, group="play")
    assert {len(set(texts(part))) % 2 for part in found.values()} == {0}
    assert len(found["train"]) + len(found["test"]) == 40


def test_the_share_that_a_run_kept_is_found_again() -> None:
    data = {"train": [write("a.jsonl", rows(200)), {"source": write("b.jsonl", rows(50, "b")), "weight": 2}]}
    kept = splits(**data, evaluation=0.2, test=0.1)
    spec = DataSpec(**data, evaluation=0.2, test=0.1)
    assert load_split(spec, "test", TASK, FORMATS) == kept["test"]
    assert load_split(spec, "evaluation", TASK, FORMATS) == kept["evaluation"]


def test_a_split_with_files_of_its_own_is_read_without_the_training_rows() -> None:
    spec = DataSpec(train="gone.jsonl", test=[write("a.jsonl", rows(3)), write("b.jsonl", rows(2, "b"))])
    assert texts(load_split(spec, "test", TASK, FORMATS)) == ["text 0", "text 1", "text 2", "b 0", "b 1"]


# -- mixtures ------------------------------------------------------------------------------------------


def test_sources_are_put_together_and_a_row_keeps_its_place() -> None:
    sources = [write("a.jsonl", rows(2)), write("b.jsonl", rows(1, "b"))]
    found = splits(train=sources, evaluation=list(reversed(sources)))
    assert [row.where for row in found["train"]] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1"]
    assert texts(found["evaluation"]) == ["b 0", "text 0", "text 1"]


@pytest.mark.parametrize(("weight", "times"), [(1, 1), (2.0, 2), (3, 3)])
def test_a_whole_weight_repeats_every_row(weight: float, times: int) -> None:
    found = splits(train={"source": write("a.jsonl", rows(5)), "weight": weight})
    assert Counter(texts(found["train"])) == {f"text {n}": times for n in range(5)}


def test_the_rest_of_a_weight_takes_a_share_of_the_rows_once_more() -> None:
    counts = Counter(texts(splits(train={"source": write("a.jsonl", rows(2000)), "weight": 1.25})["train"]))
    assert set(counts.values()) == {1, 2}
    assert abs(list(counts.values()).count(2) - 500) < 3 * (2000 * 0.25 * 0.75) ** 0.5


def test_a_weight_below_one_takes_the_same_rows_every_time_and_more_with_more_weight() -> None:
    write("a.jsonl", rows(300))
    write("b.jsonl", reversed(rows(300)))
    half = set(texts(splits(train={"source": "a.jsonl", "weight": 0.5})["train"]))
    assert half == set(texts(splits(train={"source": "b.jsonl", "weight": 0.5})["train"]))
    assert half < set(texts(splits(train={"source": "a.jsonl", "weight": 0.7})["train"]))


def test_the_subset_of_a_weight_has_nothing_to_do_with_the_share_that_is_held_out() -> None:
    source = write("a.jsonl", rows(2000))
    held_out = splits(train=source, test=0.5)
    both = splits(train={"source": source, "weight": 0.5}, test=0.5)
    assert both["test"] == held_out["test"]
    assert abs(len(both["train"]) - len(held_out["train"]) / 2) < 3 * (1000 * 0.25) ** 0.5


def test_a_weight_that_takes_no_row_is_an_error() -> None:
    [problem] = problems(train={"source": write("a.jsonl", rows(3)), "weight": 0.0001})
    assert problem.where == "a.jsonl"
    assert "raise a weight" in problem.fix


def test_every_source_may_have_a_format_and_columns_of_its_own() -> None:
    alpaca = write("a.jsonl", [{"instruction": "why?", "output": "because"}])
    pairs = write("b.jsonl", [{"q": "why?", "a": "because"}])
    found = load_splits(
        DataSpec(train=[alpaca, {"source": pairs, "columns": {"prompt": "q", "completion": "a"}}]), CHAT, FORMATS
    )
    assert found.formats == ("alpaca", "prompt-completion")
    assert found.train[0].values == found.train[1].values


def test_a_fix_for_one_source_of_several_stands_beside_it() -> None:
    write("a.jsonl", rows(3))
    write("b.jsonl", [{"review": "a", "label": 1}])
    [problem] = problems(train=["a.jsonl", {"source": "b.jsonl", "weight": 2.0}])
    assert problem.fix.endswith("{source: b.jsonl, weight: 2.0, columns: {text: review}}")
    [problem] = problems(train="b.jsonl")
    assert problem.fix.endswith("data: {columns: {text: review}}")


def test_the_problems_of_all_sources_are_reported_at_once() -> None:
    write("a.jsonl", [{"review": "a", "label": 1}])
    found = problems(train=["a.jsonl", "none.jsonl"], evaluation="gone.jsonl", test=[write("c.jsonl", [])])
    assert [problem.where for problem in found] == ["a.jsonl:1", "none.jsonl", "gone.jsonl", "c.jsonl"]


# -- other files, and fingerprints ---------------------------------------------------------------------


def test_rows_to_predict_need_neither_labels_nor_the_columns_of_labels() -> None:
    spec = DataSpec(train="a.jsonl", columns={"text": "review", "label": "stars"})
    source = write("new.jsonl", [{"review": "fine"}])
    assert [row.values for row in load_rows(source, spec, TASK, FORMATS, labelled=False)] == [{"text": "fine"}]
    with pytest.raises(DataError, match="there is no column 'stars'"):
        load_rows(source, spec, TASK, FORMATS, labelled=True)


def test_rows_to_predict_may_have_a_format_of_their_own() -> None:
    source = write("new.jsonl", [{"prompt": "why?"}])
    [row] = load_rows(source, DataSpec(train="a.jsonl"), CHAT, FORMATS, labelled=False)
    assert row.values == {"messages": [{"role": "user", "content": "why?"}]}


@pytest.mark.parametrize("data", [{"format": "alpaca"}, {"columns": {"messages": "dialog"}}])
def test_they_may_be_written_otherwise_than_the_recipe_says_of_its_own(data: dict[str, Any]) -> None:
    source = write("new.jsonl", [{"messages": [{"role": "user", "content": "why?"}]}])
    [row] = load_rows(source, DataSpec(train="a.jsonl", **data), CHAT, FORMATS, labelled=False)
    assert row.values["messages"][0]["content"] == "why?"


def test_one_question_with_several_answers_never_stands_on_two_sides() -> None:
    questions = [f"question {number}" for number in range(30)]
    source = write("a.jsonl", [{"prompt": q, "completion": f"answer {n}"} for q in questions for n in range(4)])
    splits = load_splits(DataSpec(train=source, evaluation=0.3), CHAT, FORMATS)
    asked = [{row.values["messages"][0]["content"] for row in rows} for rows in (splits.train, splits.evaluation)]
    assert asked[0] | asked[1] == set(questions)
    assert not asked[0] & asked[1]


def test_every_source_has_one_fingerprint() -> None:
    write("a.jsonl", rows(2))
    write("b.jsonl", rows(3))
    spec = DataSpec(train=["a.jsonl", {"source": "b.jsonl", "weight": 2}], evaluation="a.jsonl", test=0.5)
    assert fingerprints(spec) == {
        name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in ("a.jsonl", "b.jsonl")
    }


def test_what_is_wrong_names_the_column_of_its_own_source() -> None:
    """The recipe's column is another one than that of a source with columns of its own."""
    plain = write("plain.jsonl", [*rows(4), {"text": "", "label": 0}])
    reviews = write("reviews.jsonl", [{"review": text, "stars": 1} for text in ("fine", "dull", "long", "")])
    named = {"source": reviews, "columns": {"text": "review", "label": "stars"}}
    task: Any = REGISTRY.make_task(REGISTRY.task_options("text-classification")(name="text-classification"))
    data = DataSpec(train=[plain, named])
    with pytest.raises(DataError) as caught:
        task.prepare(load_splits(data, task, FORMATS), data)
    (problem,) = caught.value.problems
    assert problem.where == "plain.jsonl:5, column 'text'\nreviews.jsonl:4, column 'review'"
