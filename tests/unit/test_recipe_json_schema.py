"""Editors that know the JSON Schema accept what `load_recipe` accepts and mark what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel, ConfigDict
from recipe_support import STRATEGIES, TASKS, minimal, parse

from adaptkit.errors import RecipeError
from adaptkit.recipe import StrategyOptions, recipe_json_schema

SCHEMA = recipe_json_schema(STRATEGIES, TASKS)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_it_is_a_json_schema() -> None:
    VALIDATOR.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"strategy": "full"},
        {"strategy": {"name": "lora", "r": 8, "targets": ["query"]}},
        {"strategy": {"name": "prefix", "tokens": 3}},
        {"task": {"name": "text-classification", "labels": None}},
        {"model": {"name": "base", "precision": "nf4"}},
        {"training": {"epochs": 0.5, "max_steps": None, "schedule": "cosine"}},
    ],
)
def test_good_recipes_pass(changes: dict[str, Any]) -> None:
    parse(**changes)
    VALIDATOR.validate(minimal(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "lorra"},
        {"strategy": "prefix"},
        {"strategy": {"name": "full", "r": 8}},
        {"strategy": {"name": "lora", "r": 0}},
        {"strategy": {"r": 8}},
        {"task": {"name": "sft", "labels": []}},
        {"model": {"precision": "nf4"}},
        {"model": 5},
        {"training": {"epoch": 1}},
        {"training": {"schedule": "linaer"}},
        {"data": {}},
        {"extra": 1},
        {"output": None},
    ],
)
def test_bad_recipes_fail(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        parse(**changes)
    assert not VALIDATOR.is_valid(minimal(**changes))


def test_descriptions_are_kept_for_the_editor() -> None:
    lora = next(one for one in SCHEMA["properties"]["strategy"]["anyOf"] if one.get("title") == "lora")
    assert lora["properties"]["r"]["description"] == "Rank of the update."
    assert lora["properties"]["name"]["const"] == "lora"
    assert lora["additionalProperties"] is False


class Nested(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: int = 1


class WithNested(StrategyOptions):
    nested: Nested = Nested()


class WithCode(StrategyOptions):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    function: Callable[[int], int] | None = None


def test_nested_models_of_a_strategy_are_checked_too() -> None:
    validator = jsonschema.Draft202012Validator(recipe_json_schema({"nested": WithNested}, TASKS))
    assert validator.is_valid(minimal(strategy={"name": "nested", "nested": {"inner": 2}}))
    assert not validator.is_valid(minimal(strategy={"name": "nested", "nested": {"iner": 2}}))


def test_an_option_without_a_json_type_does_not_spoil_the_schema() -> None:
    validator = jsonschema.Draft202012Validator(recipe_json_schema({"code": WithCode}, TASKS))
    assert validator.is_valid(minimal(strategy="code"))


def test_nothing_unused_is_defined() -> None:
    assert set(SCHEMA["$defs"]) == {"ModelSpec", "TokenizerTraining", "DataSpec", "Source", "TrainingSpec"}
