"""What can be seen without a model: names, options, imports."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

from pydantic import ValidationError

from adaptkit.contracts import contract_faults
from adaptkit.recipe import Precision
from adaptkit.strategy import Strategy
from adaptkit.testing.check import NotApplicable, check
from adaptkit.testing.subject import Subject


@check(once=True)
def check_contract(subject: Subject) -> None:
    """Name, docstring, capabilities and what is asked before a model is loaded are as the contract wants them."""
    cls, made = subject.strategy, subject.make()
    faults = contract_faults("strategy", cls.name, cls)
    assert not faults, "; ".join(faults)
    assert (cls.__doc__ or "").strip(), "the class has no docstring; its first line is what `adaptkit strategies` says"
    for family in subject.capabilities.families:
        rate = made.learning_rate(family)
        assert rate > 0, f"learning_rate({family!r}) is {rate}"
    precision = made.base_precision()
    assert precision is None or precision in get_args(Precision), f"base_precision() is {precision!r}"
    for capability, method in (("mergeable", "merge"), ("can_disable", "disabled")):
        declared, written = (
            getattr(subject.capabilities, capability),
            getattr(cls, method) is not getattr(Strategy, method),
        )
        assert written or not declared, f"{capability} is declared, but there is no {method}()"


@check(once=True)
def check_options(subject: Subject) -> None:
    """Options refuse unknown keys, survive JSON, and are described."""
    options = subject.make().options
    cls = type(options)
    try:
        cls.model_validate({**options.model_dump(), "no_such_option": 1})
    except ValidationError:
        pass
    else:
        raise AssertionError("an unknown option is accepted; leave extra='forbid' of StrategyOptions as it is")
    again = cls.model_validate_json(options.model_dump_json())
    assert again == options, f"the options come back from JSON as {again}, not {options}"
    silent = [name for name, field in cls.model_fields.items() if not field.description]
    assert not silent, f"options without a description: {', '.join(silent)}; write Field(…, description=…)"


@check(once=True)
def check_import(subject: Subject) -> None:
    """The module of the strategy imports no torch, so that names and options are known at once."""
    module = subject.strategy.__module__
    if module == "__main__":
        raise NotApplicable("the strategy stands in a script")
    program = f"import importlib, sys; sys.path[:] = {sys.path!r}; importlib.import_module({module!r})"
    program += "; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert not done.stderr, f"importing {module} in a fresh process fails: {done.stderr.strip().splitlines()[-1]}"
    assert done.returncode == 0, f"importing {module} imports torch; import it inside of the methods that need it"
