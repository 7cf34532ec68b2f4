"""A good recipe becomes a `Recipe`; a bad one is answered with all its problems, each with place and remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import field_validator, model_validator
from recipe_support import GOOD, RESOLVER, Lora, load, minimal, outcome, parse, problems

from adaptkit.errors import PluginError, RecipeError
from adaptkit.recipe import Recipe, StrategyOptions, dump_recipe, load_recipe, parse_recipe


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def test_a_strategy_gets_its_own_options_class(path: Path) -> None:
    recipe = load(path)
    assert type(recipe) is Recipe
    assert recipe.strategy == Lora(name="lora", r=8)


def test_file_values_and_python_objects_give_equal_recipes(path: Path) -> None:
    values = minimal(model="assets/minilm", strategy={"name": "lora", "r": 8}, training={"epochs": 2})
    assert load(path) == parse_recipe(values, resolver=RESOLVER)


def test_every_problem_is_reported_at_once_in_the_order_of_the_file(path: Path) -> None:
    text = """\
modle: a
task: text-clasification
data:
  trian: train.jsonl
strategy: {name: lora, r: 0, seed: 3}
training:
  epochs: -1
  schedule: linaer
  effective_batch: true
output: 5
"""
    found = problems(path, text)
    assert [problem.found for problem in found.values()] == [
        "unknown key 'modle' in the recipe",
        "unknown task 'text-clasification'",
        "data.train is missing",
        "unknown key 'trian' in data",
        "strategy.r must be greater than or equal to 1, found 0",
        "unknown key 'seed' in strategy",
        "training.epochs must be greater than 0, found -1",
        "training.schedule must be 'linear', 'cosine' or 'constant', found 'linaer'",
        "training.effective_batch must be a whole number at least 1, found true",
        "output must be text, found 5",
    ]
    assert list(found)[3:] == [":4:3", ":5:24", ":5:30", ":7:3", ":8:3", ":9:3", ":10:1"]


@pytest.mark.parametrize(
    ("section", "where", "fix"),
    [
        ("training: {epoch: 1}", ":6:12", "did you mean 'epochs'?"),
        ("training: {r: 1}", ":6:12", "strategy.r is where this key lives"),
        ("training: {labels: [a]}", ":6:12", "task.labels is where this key lives"),
        ("seed: 1", ":6:1", "training.seed is where this key lives"),
        ("training: {output: 1}", ":6:12", "output is where this key lives"),
        ("training: {zzz: 1}", ":6:12", "remove 'zzz'"),
        ("training: {schedule: cosin}", ":6:12", "did you mean 'cosine'?"),
        ("training: {optimizer: 5}", ":6:12", "put it in quotes"),
    ],
)
def test_the_fix_says_what_was_meant(path: Path, section: str, where: str, fix: str) -> None:
    text = GOOD.replace("training:\n  epochs: 2", section)
    assert problems(path, text)[where].fix == fix


@pytest.mark.parametrize(
    ("section", "allowed"),
    [
        ("training: {epochs: x}", "a number greater than 0\nPasses over the training rows."),
        ("training: {max_steps: x}", "a whole number at least 1 or null\nOptimizer steps; wins over `epochs`."),
        (
            "training: {cache_frozen_features: 7}",
            "true or false\nRun the frozen part of a probe once instead of every epoch.",
        ),
        ("training: 5", "a section with keys"),
    ],
)
def test_what_is_allowed_is_said_in_plain_words(path: Path, section: str, allowed: str) -> None:
    text = GOOD.replace("training:\n  epochs: 2", section)
    (problem,) = problems(path, text).values()
    assert problem.allowed == allowed


def test_the_keys_of_a_section_are_listed(path: Path) -> None:
    (problem,) = problems(path, GOOD.replace("r: 8", "rank: 8")).values()
    assert problem.allowed == "name, r, dropout, targets, bias, ranks"


@pytest.mark.parametrize("section", ["strategy: lora\n", "strategy: {name: lora}\n"])
def test_a_missing_key_is_placed_at_its_section(path: Path, section: str) -> None:
    text = GOOD.replace("strategy: {name: lora, r: 8}\n", section.replace("lora", "prefix"))
    (place,) = problems(path, text).items()
    assert (place[0], place[1].found) == (":5:1", "strategy.tokens is missing")


def test_a_missing_section_is_placed_at_the_top(path: Path) -> None:
    (place,) = problems(path, GOOD.replace("strategy: {name: lora, r: 8}\n", "")).items()
    assert (place[0], place[1].found) == (":1:1", "strategy is missing")


@pytest.mark.parametrize("word", ["no", "off", "on", "yes"])
def test_old_yaml_booleans_are_text_where_text_is_wanted(path: Path, word: str) -> None:
    assert load(path, GOOD.replace("runs/one", word)).output == word


def test_a_union_is_one_problem(path: Path) -> None:
    (problem,) = problems(path, GOOD.replace("r: 8", "targets: 5")).values()
    assert problem.found == "strategy.targets must be a list (each text) or 'all-linear', found 5"


@pytest.mark.parametrize(("option", "name"), [("ranks: {a: x}", "ranks.a"), ("targets: [1]", "targets[0]")])
def test_problems_inside_values_are_placed(path: Path, option: str, name: str) -> None:
    (problem,) = problems(path, GOOD.replace("r: 8", option)).values()
    assert problem.found.startswith(f"strategy.{name}")


def test_a_long_value_is_shown_shortened(path: Path) -> None:
    (problem,) = problems(path, GOOD.replace("epochs: 2", f"epochs: {'x' * 1000}")).values()
    assert len(problem.found) < 120


def test_true_is_no_number() -> None:
    with pytest.raises(RecipeError, match=r"strategy\.r must be a whole number at least 1, found true"):
        parse(strategy={"name": "lora", "r": True})


def test_an_unknown_strategy_hides_no_other_problem(path: Path) -> None:
    found = problems(path, GOOD.replace("name: lora", "name: lorra").replace("epochs: 2", "epochs: 0"))
    assert [problem.found[:16] for problem in found.values()] == ["unknown strategy", "training.epochs "]
    assert list(found) == [":5:12", ":7:3"]


def test_a_plugin_that_did_not_load_is_a_plugin_error_when_nothing_else_is_wrong(path: Path) -> None:
    path.write_text(GOOD.replace("lora", "broken"))
    with pytest.raises(PluginError, match=r"recipe\.yaml:5:12"):
        load_recipe(path, resolver=RESOLVER)
    with pytest.raises(RecipeError, match="did not load"):
        load_recipe(path, ["training.epochs=0"], resolver=RESOLVER)


class Checked(StrategyOptions):
    low: int = 0
    high: int = 1

    @field_validator("low")
    @classmethod
    def _is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be even")
        return value

    @model_validator(mode="after")
    def _is_ordered(self) -> Checked:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class CheckedResolver:
    strategy_options = staticmethod(lambda name: Checked)
    task_options = RESOLVER.task_options


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"low": 3}, "strategy.low must be even, found 3"),
        ({"low": 4}, "strategy is not accepted: low is above high, found {'name': 'lora', 'low': 4}"),
    ],
)
def test_the_message_of_a_strategys_own_check_is_kept(options: dict[str, Any], found: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(minimal(strategy={"name": "lora", **options}), resolver=CheckedResolver())
    assert error.value.problems[0].found == found


NUMBERS = st.floats(min_value=1e-6, max_value=1e6)
TEXTS = st.text(min_size=1)
VALUES = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries({"name": TEXTS}, optional={"precision": st.sampled_from(["bf16", "nf4"])}),
        "task": st.fixed_dictionaries(
            {"name": st.just("text-classification")}, optional={"labels": st.lists(st.text())}
        ),
        "data": st.fixed_dictionaries({"train": TEXTS}, optional={"columns": st.dictionaries(st.text(), st.text())}),
        "strategy": st.fixed_dictionaries(
            {"name": st.just("lora")},
            optional={"r": st.integers(1, 10**6), "targets": st.lists(st.text()), "bias": st.booleans()},
        ),
        "training": st.fixed_dictionaries({}, optional={"epochs": NUMBERS, "learning_rate": NUMBERS | st.none()}),
        "output": TEXTS,
    }
)


@given(VALUES)
def test_a_dumped_recipe_is_loaded_equal(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    recipe = parse_recipe(values, resolver=RESOLVER)
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path, resolver=RESOLVER) == recipe


def test_a_dumped_recipe_prints_every_key_in_the_order_of_the_schema() -> None:
    lines = [line for line in dump_recipe(parse()).splitlines() if not line.startswith(" ")]
    assert [line.split(":")[0] for line in lines] == list(Recipe.model_fields)
    assert "  keep_checkpoints: 1" in dump_recipe(parse()).splitlines()


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["lora", "full", "sft"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=8,
)
SECTIONS = [*Recipe.model_fields, "x"]


@given(st.dictionaries(st.sampled_from(SECTIONS) | st.text(), ANY | st.just({"name": "lora"}), max_size=6))
def test_any_values_give_a_recipe_or_a_recipe_error(values: dict[str, Any]) -> None:
    result = outcome(lambda: parse_recipe(values, resolver=RESOLVER))
    assert isinstance(result, Recipe | RecipeError)


def test_recipes_are_read_without_torch() -> None:
    code = "import sys, adaptkit.recipe; sys.exit(bool({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
