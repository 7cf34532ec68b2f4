"""`key=value` on the command line and mappings in Python change a recipe before it is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_support import GOOD, RESOLVER, load, outcome, problems

from adaptkit.errors import PluginError, RecipeError
from adaptkit.recipe import ModelSpec, Recipe, load_recipe

SHORT = GOOD.replace("{name: lora, r: 8}", "full")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["training.epochs=1"], "training.epochs", 1),
        (["training.learning_rate=1e-3"], "training.learning_rate", 1e-3),
        (["training.max_grad_norm=null"], "training.max_grad_norm", None),
        (["training.epochs=1", "training.epochs=5"], "training.epochs", 5),
        (["data.columns={text: review}"], "data.columns", {"text": "review"}),
        (["data.columns.text=review"], "data.columns", {"text": "review"}),
        (["output=runs/a=b"], "output", "runs/a=b"),
        (["task.labels=[a, no]"], "task.labels", ["a", "no"]),
        (["model=other"], "model.name", "other"),
        (["model.precision=nf4"], "model.precision", "nf4"),
        (["strategy.r=4"], "strategy.r", 4),
        ({"training.epochs": 1}, "training.epochs", 1),
        ({"data.columns": {"text": "review"}}, "data.columns.text", "review"),
        ({"output": "1"}, "output", "1"),
        ("training.epochs=1", "training.epochs", 1),
    ],
)
def test_an_override_wins_over_the_file(path: Path, overrides: Any, key: str, value: object) -> None:
    found: Any = load(path, GOOD, overrides).model_dump()
    for part in key.split("."):
        found = found[part]
    assert found == value


@pytest.mark.parametrize(
    ("overrides", "rate"),
    [
        (["strategy=full"], None),
        (["strategy={name: full}"], None),
        (["strategy=full", "training.learning_rate=1e-4"], 1e-4),
        (["training.learning_rate=1e-4", "strategy.name=full"], 1e-4),
        (["strategy=full", "training={learning_rate: 1e-4}"], 1e-4),
        (["strategy=lora"], 1e-3),
        (["strategy.r=4"], 1e-3),
    ],
)
def test_another_strategy_leaves_the_learning_rate_behind_that_was_the_first_ones(
    path: Path, overrides: Any, rate: float | None
) -> None:
    text = GOOD.replace("epochs: 2", "learning_rate: 1e-3")
    assert load(path, text, overrides).training.learning_rate == rate


@pytest.mark.parametrize("text", [GOOD, SHORT])
@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=lora", "strategy.r=4"],
        ["strategy.r=4", "strategy=lora"],
        ["strategy.r=4", "strategy.name=lora"],
        ["strategy={name: lora, r: 4}"],
        {"strategy.name": "lora", "strategy.r": 4},
        {"strategy": {"name": "lora", "r": 4}},
    ],
)
def test_a_strategy_and_its_options_may_be_given_in_any_form_and_order(path: Path, text: str, overrides: Any) -> None:
    assert (
        load(path, text, overrides).strategy.model_dump()
        == RESOLVER.strategy_options("lora")(name="lora", r=4).model_dump()
    )


@pytest.mark.parametrize("override", ["strategy=full", "strategy.name=full"])
def test_another_strategy_drops_the_options_of_the_one_before(path: Path, override: str) -> None:
    assert load(path, GOOD, [override]).strategy.model_dump() == {"name": "full"}


def test_another_task_drops_the_options_of_the_one_before(path: Path) -> None:
    text = GOOD.replace("task: text-classification", "task: {name: text-classification, labels: [a, b]}")
    assert load(path, text, ["task=sft"]).task.model_dump() == {"name": "sft"}


@pytest.mark.parametrize("override", ["strategy=lora", "strategy.name=lora"])
def test_the_same_strategy_keeps_its_options(path: Path, override: str) -> None:
    assert load(path, GOOD, [override]).strategy.model_dump()["r"] == 8


def test_another_model_keeps_the_way_it_is_loaded(path: Path) -> None:
    text = GOOD.replace("model: assets/minilm", "model: {name: a, precision: bf16}")
    assert load(path, text, ["model=b"]).model == ModelSpec(name="b", precision="bf16")


def test_a_section_that_the_file_lacks_is_made(path: Path) -> None:
    text = GOOD.replace("training:\n  epochs: 2\n", "")
    assert load(path, text, ["training.seed=7"]).training.seed == 7


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("training.epochs=-1", "training.epochs must be greater than 0, found -1"),
        ("training.epoch=1", "unknown key 'epoch' in training"),
        ("trainin.epochs=1", "unknown key 'trainin' in the recipe"),
        ("strategy=lorra", "unknown strategy 'lorra'"),
        ("data={}", "data.train is missing"),
        ("training", "'training' is not an override"),
        ("training.epochs=", "'training.epochs=' gives no value"),
        ("training.epochs=# 1", "'training.epochs=# 1' gives no value"),
        ("training..epochs=1", "the key 'training..epochs' is not a dotted path"),
        ("=1", "the key '' is not a dotted path"),
        ("output.name=1", "output has no keys of its own: it is 'runs/one'"),
        ("training.epochs=[1", "this is not YAML that a recipe can use: while parsing a flow sequence"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_typed(path: Path, override: str, found: str) -> None:
    assert problems(path, GOOD, [override])[f"command line: {override}"].found.startswith(found)


def test_all_wrong_overrides_are_reported_at_once(path: Path) -> None:
    assert len(problems(path, GOOD, ["a", "b=", "c..d=1", "output.x=1"])) == 4


def test_a_wrong_override_from_python_is_named(path: Path) -> None:
    assert "epochs must be" in problems(path, GOOD, {"training.epochs": -1})["overrides: training.epochs"].found


def test_the_other_keys_keep_their_places(path: Path) -> None:
    text = GOOD.replace("epochs: 2", "epochs: -2")
    assert ":7:3" in problems(path, text, ["training.seed=1", "strategy=full"])


KEYS = st.sampled_from(
    ["strategy", "strategy.name", "strategy.r", "task", "model.name", "training.epochs", "data", "x"]
)
VALUES = st.text() | st.sampled_from(["lora", "full", "broken", "1", "-1", "true", "{name: lora, r: 2}", "[a]", "null"])


@given(st.lists(st.text() | st.builds("{}={}".format, KEYS | st.text(), VALUES), max_size=4))
def test_any_overrides_give_a_recipe_or_a_readable_error(
    tmp_path_factory: pytest.TempPathFactory, overrides: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(GOOD)
    result = outcome(lambda: load_recipe(path, overrides, resolver=RESOLVER))
    assert isinstance(result, Recipe | RecipeError | PluginError)
    assert all(problem.where for problem in getattr(result, "problems", ()))
