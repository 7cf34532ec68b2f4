"""The data section of a recipe: sources, several of them, and shares of the training rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from recipe_support import GOOD, STRATEGIES, TASKS, load, minimal, parse, problems

from adaptkit.errors import RecipeError
from adaptkit.recipe import DataSpec, dump_recipe, recipe_json_schema
from adaptkit.recipe.schema import Source

VALIDATOR = jsonschema.Draft202012Validator(recipe_json_schema(STRATEGIES, TASKS))
GOOD_DATA: list[dict[str, Any]] = [
    {"train": "a.jsonl"},
    {"train": ["a.jsonl", "b.jsonl"], "evaluation": ["c.jsonl"]},
    {"train": ["a.jsonl", {"source": "b.jsonl", "weight": 0.5, "format": "alpaca", "columns": {"instruction": "q"}}]},
    {"train": {"source": "a.jsonl", "weight": 2}, "test": {"source": "b.jsonl", "format": "alpaca"}},
    {"train": "a.jsonl", "evaluation": 0.1, "test": 0.2, "group": "document"},
]


@pytest.mark.parametrize("data", GOOD_DATA)
def test_a_recipe_that_was_written_out_is_read_back(data: dict[str, Any], tmp_path: Path) -> None:
    recipe = parse(data=data)
    assert load(tmp_path / "recipe.yaml", dump_recipe(recipe)).data == recipe.data
    VALIDATOR.validate(minimal(data=data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": []}, "data.train must be text or"),
        ({"train": 0.5}, "data.train must be text or"),
        ({"train": {"source": "a", "wieght": 2}}, "did you mean 'weight'"),
        ({"train": ["a", {"weight": 2}]}, r"data.train\[1\].source is missing"),
        ({"train": [{"source": "a", "weight": 0}]}, r"data.train\[0\].weight must be greater than 0"),
        ({"train": [{"source": "a", "weight": True}]}, r"data.train\[0\].weight must be a number"),
        ({"train": "a", "evaluation": 1.5}, "data.evaluation must be a number greater than 0 and less than 1"),
        ({"train": "a", "evaluation": True}, "data.evaluation must be a number"),
        ({"train": "a", "test": 0}, "data.test must be a number"),
    ],
)
def test_what_a_data_section_cannot_say_is_refused_in_an_editor_too(data: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(data=data)
    assert not VALIDATOR.is_valid(minimal(data=data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": "a", "evaluation": [{"source": "b", "weight": 2}]}, "only training rows have a weight"),
        ({"train": "a", "test": {"source": "b", "weight": 0.5}}, "only training rows have a weight"),
        ({"train": "a", "evaluation": 0.5, "test": 0.5}, "it leaves no training rows"),
        ({"train": "a", "evaluation": "b", "group": "document"}, "is a share of the training rows"),
    ],
)
def test_what_has_no_meaning_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(data=data)


def test_a_number_that_is_no_share_is_not_said_to_need_quotes(tmp_path: Path) -> None:
    [problem] = problems(tmp_path / "recipe.yaml", GOOD, ["data.evaluation=1.5"]).values()
    assert problem.fix is None


def test_a_source_is_a_name_or_a_section() -> None:
    spec = DataSpec(train=["a", {"source": "b", "weight": 2}], evaluation=0.125)
    assert spec.sources("train") == [Source(source="a"), Source(source="b", weight=2)]
    assert spec.sources("evaluation") == spec.sources("test") == []
    assert (spec.share("evaluation"), spec.share("test"), spec.share("train")) == (0.125, 0, 0)
    assert [spec.named(split) for split in ("train", "evaluation", "test")] == ["a, b", "12.5 % of a, b", ""]


def test_a_run_is_measured_on_its_test_rows_else_on_those_for_evaluation() -> None:
    assert DataSpec(train="a", evaluation="b", test=0.1).held_out == "test"
    assert DataSpec(train="a", evaluation=0.1).held_out == "evaluation"
    assert DataSpec(train="a").held_out is None
