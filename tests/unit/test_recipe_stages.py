"""`stages:` are recipes that differ in how is learned, never in what; a mistake in one is named where it stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_support import GOOD, RESOLVER, STRATEGIES, TASKS, load, outcome, parse, problems

from adaptkit.errors import PluginError, RecipeError
from adaptkit.recipe import Recipe, StagedRecipe, dump_recipe, load_recipe, recipe_json_schema

STAGED = """\
model: {name: assets/minilm, revision: main}
task: text-classification
data:
  train: train.jsonl
training:
  epochs: 2
  seed: 7
stages:
  - {strategy: full, training: {epochs: 1}}
  - strategy: {name: lora, r: 8}
    model: {precision: bf16}
  - strategy: full
    training:
      learning_rate: 1e-5
    data: {max_length: 64}
output: runs/staged
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def staged(path: Path, text: str = STAGED, overrides: Any = ()) -> StagedRecipe:
    recipe = load(path, text, overrides)
    assert isinstance(recipe, StagedRecipe)
    return recipe


def test_a_stage_is_what_stands_above_with_its_own_changes(path: Path) -> None:
    first, second, third = staged(path).stages
    assert [stage.strategy.name for stage in (first, second, third)] == ["full", "lora", "full"]
    assert [stage.training.epochs for stage in (first, second, third)] == [1, 2, 2]
    assert [stage.training.learning_rate for stage in (first, second, third)] == [None, None, 1e-5]
    assert {stage.training.seed for stage in (first, second, third)} == {7}
    assert (second.model.precision, second.model.revision, third.model.precision) == ("bf16", "main", None)
    assert (second.data.max_length, third.data.max_length) == (None, 64)


def test_as_a_recipe_of_its_own_it_is_the_last_stage(path: Path) -> None:
    recipe = staged(path)
    assert dict(recipe) == {**dict(recipe.stages[-1]), "stages": recipe.stages}


def test_what_is_written_down_is_read_back(path: Path) -> None:
    recipe = staged(path)
    text = dump_recipe(recipe)
    assert staged(path, text) == recipe
    assert not any(line.startswith(("strategy:", "training:")) for line in text.splitlines())


def test_a_recipe_without_stages_is_written_as_before(path: Path) -> None:
    assert "stages" not in dump_recipe(load(path, GOOD))


@pytest.mark.parametrize(
    ("before", "after", "place", "found"),
    [
        ("{epochs: 1}", "{epochs: -1}", ":9:33", "training.epochs must be greater than 0"),
        ("r: 8", "r: 0", ":10:28", "strategy.r must be greater than or equal to 1"),
        ("r: 8", "rank: 8", ":10:28", "unknown key 'rank' in strategy"),
        ("name: lora", "name: lorra", ":10:16", "unknown strategy 'lorra'"),
        ("epochs: 2", "epochs: two", ":6:3", "training.epochs must be a number"),
        ("{precision: bf16}", "{name: other}", ":11:13", "a stage cannot change model.name"),
        ("{precision: bf16}", "other", ":11:5", "a stage cannot change model"),
        ("{max_length: 64}", "{train: other}", ":15:12", "a stage cannot change data.train"),
        ("data: {max", "task: sft\n    data: {max", ":15:5", "a stage cannot change task"),
        ("data: {max", "trainin: 1\n    data: {max", ":15:5", "a stage cannot change trainin"),
        ("{strategy: full, ", "{", ":9:5", "stages[0] names no strategy"),
        ("{strategy: full, ", "{strategy: auto, ", ":9:5", "stages[0] leaves its strategy open"),
        ("{strategy: full, training: {epochs: 1}}", "full", ":9:5", "stages[0] is no section with keys"),
        ("output:", "strategy: lora\noutput:", ":16:1", "a recipe with stages has no strategy of its own"),
    ],
)
def test_a_mistake_is_named_once_and_where_it_stands(
    path: Path, before: str, after: str, place: str, found: str
) -> None:
    said = problems(path, STAGED.replace(before, after, 1))
    assert list(said) == [place]
    assert said[place].found.startswith(found)


def test_what_a_stage_may_not_change_is_said_with_what_it_may(path: Path) -> None:
    (problem,) = problems(path, STAGED.replace("{max_length: 64}", "{train: other}")).values()
    assert problem.allowed == "strategy, training, model.precision, data.max_length"
    (problem,) = problems(path, STAGED.replace("data: {max", "trainin: 1\n    data: {max")).values()
    assert problem.fix == "did you mean 'training'?"


@pytest.mark.parametrize("stages", ["[]", "full", "{strategy: full}", "5"])
def test_stages_that_are_no_list_are_refused(path: Path, stages: str) -> None:
    text = STAGED[: STAGED.index("stages:")] + f"stages: {stages}\noutput: runs/staged\n"
    (problem,) = problems(path, text).values()
    assert problem.found == "stages must be a list of sections, one a stage"


def test_every_mistake_is_found_at_once(path: Path) -> None:
    text = STAGED.replace("{epochs: 1}", "{epochs: -1}").replace("r: 8", "r: 0").replace("seed: 7", "seed: -7")
    assert list(problems(path, text)) == [":7:3", ":9:33", ":10:28"]


@pytest.mark.parametrize(
    ("overrides", "stage", "changed"),
    [
        (["stages.0.training.epochs=5"], 0, {"training.epochs": 5}),
        (["stages.1.training.epochs=5"], 1, {"training.epochs": 5, "strategy.r": 8}),
        (["training.epochs=5"], 1, {"training.epochs": 5}),
        (["training.epochs=5"], 0, {"training.epochs": 1}),
        (["stages.1.strategy.r=4"], 1, {"strategy.r": 4}),
        (["stages.1.strategy=full"], 1, {"strategy": {"name": "full"}}),
        (["stages.0.strategy=lora", "stages.0.strategy.r=2"], 0, {"strategy.r": 2}),
        (["stages.2.strategy=lora"], 2, {"strategy.name": "lora", "training.learning_rate": None}),
        (["stages.2.strategy=lora", "stages.2.training.learning_rate=1e-3"], 2, {"training.learning_rate": 1e-3}),
        ({"stages.0.model.precision": "fp32"}, 0, {"model.precision": "fp32"}),
    ],
)
def test_a_stage_is_changed_by_its_number(path: Path, overrides: Any, stage: int, changed: dict[str, Any]) -> None:
    values = staged(path, STAGED, overrides).stages[stage].model_dump()
    for key, value in changed.items():
        found: Any = values
        for part in key.split("."):
            found = found[part]
        assert found == value


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("strategy=lora", "a recipe with stages has no strategy of its own"),
        ("stages.3.training.epochs=1", "there is no stage '3' to change"),
        ("stages.last.training.epochs=1", "there is no stage 'last' to change"),
        ("stages.0.data.train=x", "a stage cannot change data.train"),
        ("stages.1.strategy.r=0", "strategy.r must be greater than or equal to 1"),
        ("stages.0.training.epoch=1", "unknown key 'epoch' in training"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_typed(path: Path, override: str, found: str) -> None:
    assert problems(path, STAGED, [override])[f"command line: {override}"].found.startswith(found)


def test_an_override_of_a_stage_that_a_recipe_lacks_says_so(path: Path) -> None:
    (problem,) = problems(path, GOOD, ["stages.0.training.epochs=1"]).values()
    assert "no stage" in problem.allowed


def test_the_stages_can_be_taken_away(path: Path) -> None:
    recipe = load(path, STAGED, ["stages=null", "strategy=lora"])
    assert not isinstance(recipe, StagedRecipe)
    assert recipe.strategy.name == "lora"


def test_an_editor_knows_stages() -> None:
    validator = jsonschema.Draft202012Validator(recipe_json_schema(STRATEGIES, TASKS))
    values = {"model": "base", "task": "sft", "data": {"train": "rows.jsonl"}, "output": "runs/one"}
    stage = {"strategy": "full", "training": {"epochs": 1}, "model": {"precision": "bf16"}, "data": {"max_length": 9}}
    assert validator.is_valid({**values, "stages": [{"strategy": {"name": "lora", "r": 8}}, stage]})
    for wrong in ({}, {"strategy": "lorra"}, {**stage, "data": {"train": "x"}}, {**stage, "task": "sft"}):
        assert not validator.is_valid({**values, "stages": [wrong]})
    assert not validator.is_valid({**values, "strategy": "full", "stages": [stage]})
    assert not validator.is_valid(values)
    assert not validator.is_valid({**values, "stages": []})


def test_a_head_that_was_trained_means_nothing_to_new_weights() -> None:
    with pytest.raises(RecipeError, match="would mean nothing to new weights"):
        parse(model={"name": "base", "init": "random", "head": "keep"})


NESTS = st.recursive(
    st.none() | st.integers() | st.sampled_from(["full", "lora", "prefix", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["strategy", "training", "model", "data", "name", "epochs", "x"]), inner)
    ),
    max_leaves=8,
)


@given(NESTS)
def test_any_stages_give_a_recipe_or_a_readable_error(tmp_path_factory: pytest.TempPathFactory, stages: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    text = STAGED[: STAGED.index("stages:")] + f"stages: {json.dumps(stages)}\noutput: runs/staged\n"
    path.write_text(text, encoding="utf-8")
    result = outcome(lambda: load_recipe(path, resolver=RESOLVER))
    assert isinstance(result, Recipe | RecipeError | PluginError)
    assert all(problem.where for problem in getattr(result, "problems", ()))
