"""The methods of PEFT and their options, known without importing PEFT."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from adaptkit.errors import RecipeError
from adaptkit.registry import load_registry
from adaptkit.strategies._peft_fields import config_fields, peft_methods
from adaptkit.strategies._peft_methods import METHODS, UNAVAILABLE
from adaptkit.strategies._peft_options import FRAMEWORK, peft_options


def make(method: str, **values: Any) -> Any:
    return peft_options(method)(name=f"peft:{method}", **values)


def test_every_method_of_the_installed_peft_is_offered_or_has_a_reason() -> None:
    installed = {method.replace("_", "-") for method in peft_methods()}
    assert installed == METHODS.keys() | UNAVAILABLE.keys()
    assert not METHODS.keys() & UNAVAILABLE.keys()


@pytest.mark.parametrize("method", METHODS)
def test_what_is_changed_of_a_config_is_there(method: str) -> None:
    known, fields = METHODS[method], config_fields(method.replace("-", "_"))
    assert {*known.defaults, *known.types, *known.without} <= fields.keys()


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_of_the_declared_types_and_have_a_description(method: str) -> None:
    required = {"token_indices": [3]} if method == "trainable-tokens" else {}
    options = make(method, **required)
    assert not FRAMEWORK & options.model_dump().keys()
    assert all(field.description for field in type(options).model_fields.values())
    with pytest.raises(ValidationError, match="extra_forbidden"):
        make(method, **required, nonsense=1)


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("lora", {"r": "many"}),
        ("lora", {"init_lora_weights": "pissa"}),  # it would rewrite the base
        ("adalora", {"total_step": 10}),  # the run says it
        ("oft", {"bias": "all"}),  # it would train the base
        ("road", {"variant": "road_3"}),
        ("prompt-tuning", {"prompt_tuning_init": "random"}),
        ("prompt-tuning", {"num_virtual_tokens": None}),
        ("glora", {"config_A_B": "matrix"}),
        ("ia3", {"target_modules": 3}),
        ("trainable-tokens", {}),
    ],
)
def test_a_value_that_cannot_be_is_refused_before_any_model(method: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(method, **values)


def test_inherited_fields_are_options_too() -> None:
    assert {"init_r", "lora_dropout"} <= peft_options("adalora").model_fields.keys()
    assert {"rank_pattern", "r"} <= peft_options("loha").model_fields.keys()
    assert "num_virtual_tokens" in peft_options("p-tuning").model_fields


@pytest.mark.parametrize("method", UNAVAILABLE)
def test_a_method_that_cannot_run_answers_with_its_reason(method: str) -> None:
    registry = load_registry()
    assert f"peft:{method}" not in registry.strategies
    with pytest.raises(RecipeError) as refused:
        registry.strategy_options(f"peft:{method}")
    assert UNAVAILABLE[method] in str(refused.value)


def test_a_name_that_no_method_has_is_unknown() -> None:
    with pytest.raises(RecipeError, match=r"(?s)unknown strategy 'peft:verra'.*did you mean 'peft:vera'") as refused:
        load_registry().strategy("peft:verra")
    assert "peft:boft" in str(refused.value)


def test_options_are_made_only_when_they_are_asked_for() -> None:
    code = """
import sys
from adaptkit.registry import load_registry
registry = load_registry()
from adaptkit.strategies._peft_fields import config_fields
assert config_fields.cache_info().misses == 0, "no config is read before a method is chosen"
registry.strategy_options("peft:boft")
assert config_fields.cache_info().misses == 1
assert not {"torch", "peft", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
