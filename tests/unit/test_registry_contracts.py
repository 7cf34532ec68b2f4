"""A plugin learns every way in which it breaks a contract, in words that say what to change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pydantic import ConfigDict, Field

from adaptkit.contracts import Kind, contract_faults
from adaptkit.format import Format
from adaptkit.strategy import Strategy, StrategyOptions
from adaptkit.task import Task, TaskOptions

if TYPE_CHECKING:
    from decimal import Decimal

RESERVED = "name"


class Good(Strategy[StrategyOptions]):
    name = "good"

    def adapt(self, model: Any, context: Any) -> Any:
        return model


class NoName(Strategy[StrategyOptions]):
    def adapt(self, model: Any, context: Any) -> Any:
        return model


class Abstract(Strategy[StrategyOptions]):
    name = "abstract"


class ForeignOptions(Good):
    Options: ClassVar[Any] = TaskOptions


class DictCapabilities(Good):
    capabilities: ClassVar[Any] = {"mergeable": True}


class TakesName(Good):
    class Options(StrategyOptions):
        name: str = "mine"


class TakesNameByAlias(Good):
    class Options(StrategyOptions):
        title: str = Field("mine", alias=RESERVED)


class AllowsAnyKey(Good):
    class Options(StrategyOptions):
        model_config = ConfigDict(extra="allow")


class Undefined(Good):
    class Options(StrategyOptions):
        scale: Decimal = Field()


class BareTask(Task[TaskOptions]):
    name = "bare"


def faults(value: Any, kind: Kind = "strategy") -> str:
    return "\n".join(contract_faults(kind, getattr(value, "name", None), value))


def test_a_class_that_keeps_the_contract_has_no_fault() -> None:
    assert faults(Good) == ""


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (object, "not a subclass of adaptkit.strategy.Strategy"),
        (Good(StrategyOptions(name="good")), "not a subclass of adaptkit.strategy.Strategy"),
        (NoName, 'write name = "..."'),
        (Abstract, "does not define adapt"),
        (ForeignOptions, "Options is not a subclass of adaptkit.recipe.schema.StrategyOptions"),
        (DictCapabilities, "capabilities that is a Capabilities"),
        (TakesName, "an Options field is called 'name'"),
        (TakesNameByAlias, "an Options field is called 'name'"),
        (AllowsAnyKey, "extra='forbid'"),
        (Undefined, "Decimal"),
    ],
)
def test_each_broken_contract_is_named(value: Any, fault: str) -> None:
    assert fault in faults(value)


@pytest.mark.parametrize("name", ["Bias", "my_bias", "-bias", "", "bias ", 7, "peft:", ":ia3", "a:b:c", "peft: ia3"])
def test_a_name_is_lower_case_letters_digits_and_hyphens(name: Any) -> None:
    assert contract_faults("strategy", name, Good)


@pytest.mark.parametrize("name", ["bias", "4bit", "layer-norm", "peft:ia3", "peft:ln-tuning"])
def test_a_name_may_have_one_prefix(name: str) -> None:
    assert not contract_faults("strategy", name, Good)


class BareFormat(Format):
    name = "bare"
    roles: ClassVar[Any] = "text"


def test_a_format_needs_its_roles_and_no_options() -> None:
    text = faults(BareFormat, "format")
    assert "gives that is a tuple" in text
    assert "roles that is a tuple" in text
    assert "does not define convert" in text
    assert "Options" not in text


def test_all_faults_of_a_class_are_told_at_once() -> None:
    text = faults(BareTask, "task")
    assert "capabilities that is a TaskCapabilities" in text
    assert "roles that is a tuple" in text
    assert "does not define " in text
    assert "collate, count, features" in text


def test_an_optimizer_is_a_callable_with_a_name() -> None:
    assert contract_faults("optimizer", "sgd", lambda groups, settings: None) == []
    assert "not callable" in contract_faults("optimizer", "sgd", 3)[0]
    assert contract_faults("optimizer", "SGD", lambda groups, settings: None)
