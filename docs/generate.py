#!/usr/bin/env python3
"""Writes the tables that stand in the documentation but are decided by the code.

    python docs/generate.py

Each table stands between two comments, ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``; what is outside of
them is written by hand. A test fails when a table is stale.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import contract_pages
import typer.main
from pydantic.fields import FieldInfo

from adaptkit import hookspecs
from adaptkit.cli.app import app
from adaptkit.format import Format
from adaptkit.plugins import DISTRIBUTION
from adaptkit.recipe import DataSpec, ModelSpec, Options, TrainingSpec
from adaptkit.recipe.describe import Description
from adaptkit.registry import Entry, load_registry
from adaptkit.strategy import AdaptContext, Capabilities, Family, FeaturePoint, Strategy
from adaptkit.task import Task, TaskCapabilities
from adaptkit.testing import FORMAT_CHECKS, STRATEGY_CHECKS, TASK_CHECKS, Check
from adaptkit.testing.check import Declares

ROOT = Path(__file__).resolve().parents[1]
PEFT = "peft:"
FAMILIES = get_args(Family)


def generated() -> dict[str, dict[str, str]]:
    """Returns the tables of each file, by the path of the file and the name of the table."""
    registry = load_registry()
    strategies = _built_in(registry.strategies)
    own = [strategy for strategy in strategies if not strategy.name.startswith(PEFT)]
    peft = [strategy for strategy in strategies if strategy.name.startswith(PEFT)]
    return {
        "README.md": {"commands": _commands()},
        "docs/recipes.md": {
            "model": _keys("model", ModelSpec),
            "data": _keys("data", DataSpec),
            "formats": _formats(_built_in(registry.formats)),
            "training": _keys("training", TrainingSpec),
            **{task.name: _task(task) for task in _built_in(registry.tasks)},
            "strategies": "\n\n".join(_strategy(strategy) for strategy in own),
            "optimizers": ", ".join(f"`{name}`" for name in sorted(registry.optimizers)),
        },
        "docs/strategies.md": {"peft": _peft(peft, registry.unavailable)},
        "docs/contract.md": {
            "strategy-attributes": _attributes(Strategy),
            "strategy-methods": contract_pages.method_sections(Strategy),
            "capabilities": _attributes(Capabilities),
            "context": _attributes(AdaptContext),
            "feature-point": _attributes(FeaturePoint),
            "task-attributes": _attributes(Task),
            "task-methods": _methods(Task),
            "task-capabilities": _attributes(TaskCapabilities),
        },
        "docs/conformance.md": {
            "strategy-checks": _checks(STRATEGY_CHECKS),
            "task-checks": _checks(TASK_CHECKS),
            "format-checks": _checks(FORMAT_CHECKS),
        },
        "docs/hooks.md": {
            "registration": contract_pages.hook_sections(hookspecs.Registration),
            "events": contract_pages.hook_sections(hookspecs.Events),
            "run": _attributes(hookspecs.RunInfo),
            "record": _attributes(hookspecs.StepRecord),
            "tracker": _methods(hookspecs.Tracker),
            "version": f"```python\nAPI_VERSION = {hookspecs.API_VERSION}\n```",
        },
    }


def _checks(checks: Iterable[Check]) -> str:
    rows = ((f"`{check.name}`", check.summary, _applies(check)) for check in checks)
    return _table(("check", "what it makes sure of", "where"), rows)


def _applies(check: Check) -> str:
    """Returns which capabilities a check is chosen by."""
    named = [condition for condition in check.conditions if isinstance(condition, Declares)]
    words = [f"`{one.capability}` is {'' if one.wanted else 'not '}declared" for one in named]
    return " and ".join(words)


def replaced(text: str, name: str, content: str) -> str:
    """Returns a text with what stands between the two comments of a table replaced.

    Raises:
        ValueError: The text does not have both comments, once.
    """
    begin, end = f"<!-- {name}:begin -->\n", f"\n<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{name} needs one {begin.strip()} and one {end.strip()}, each on a line of its own")
    before, _, rest = text.partition(begin)
    return before + begin + content + end + rest.partition(end)[2]


def _built_in(entries: Mapping[str, Entry[Any]]) -> list[Any]:
    return [entry.value for _, entry in sorted(entries.items()) if entry.distribution == DISTRIBUTION]


def _attributes(cls: type) -> str:
    return _columns_that_tell(("name", "default", "meaning"), contract_pages.attribute_rows(cls))


def _methods(cls: type) -> str:
    return _columns_that_tell(("method", "what it does", "default"), contract_pages.method_rows(cls))


def _task(task: type[Task[Any]]) -> str:
    families = ", ".join(sorted(task.capabilities.families))
    columns = [_roles((*task.roles, *task.label_roles)), *(f"perhaps `{role}`" for role in task.optional_roles)]
    return f"{_summary(task)} Models: {families}. Columns: {', '.join(columns)}.\n\n{_keys('task', task.Options)}"


def _formats(formats: Iterable[type[Format]]) -> str:
    rows = [(f"`{cls.name}`", _columns(cls), _roles(cls.gives), _summary(cls)) for cls in formats]
    return _table(("format", "columns", "gives", "what a row is"), rows)


def _columns(cls: type[Format]) -> str:
    names = {
        role: " or ".join(f"`{name}`" for name in (role, *cls.aliases.get(role, ())))
        for role in (*cls.roles, *cls.label_roles, *cls.optional_roles)
    }
    return ", ".join(f"perhaps {name}" if role in cls.optional_roles else name for role, name in names.items())


def _roles(roles: Iterable[str]) -> str:
    return ", ".join(f"`{role}`" for role in roles)


def _peft(strategies: Iterable[type[Strategy[Any]]], unavailable: Mapping[str, str]) -> str:
    """Returns one row for each PEFT method that runs, then those that do not, with the reason."""
    rows = []
    for strategy in strategies:
        can = strategy.capabilities
        marks = ["yes" if yes else "" for yes in (can.quantized_base, can.packing, can.mergeable)]
        families = "all" if len(can.families) == len(FAMILIES) else ", ".join(sorted(can.families))
        rates = dict.fromkeys(_rates(strategy).values())
        rows.append((f"`{strategy.name}`", _summary(strategy), families, *marks, ", ".join(rates)))
    header = ("strategy", "what it does", "families", "4-bit base", "packing", "merges", "learning rate")
    reasons = "\n".join(f"- `{name}`: {reason}." for name, reason in sorted(unavailable.items()))
    return f"{_table(header, rows)}\n\nNot offered, and why:\n\n{reasons}"


def _rates(strategy: type[Strategy[Any]]) -> dict[str, str]:
    """Returns the default learning rate by family."""
    chosen = strategy(strategy.Options.model_construct(name=strategy.name))
    return {family: f"{chosen.learning_rate(family):.0e}".replace("e-0", "e-") for family in FAMILIES}


def _strategy(strategy: type[Strategy[Any]]) -> str:
    rates = _rates(strategy)
    shown = ", ".join(f"{rate} ({family})" for family, rate in rates.items())
    return (
        f"### {strategy.name}\n\n{_summary(strategy)} Learning rate where the recipe names none: {shown}.\n\n"
        f"{_keys('strategy', strategy.Options)}"
    )


def _keys(section: str, model: type[Options]) -> str:
    """Returns one row for each key of a section; ``name`` chooses and is not an option."""
    description = Description(model)
    shown = {key: field for key, field in model.model_fields.items() if key != "name" or section == "model"}
    if not shown:
        return "No options."
    rows = [
        (f"`{section}.{key}`", _quoted(description.words((key,)) or ""), _default(field), field.description or "")
        for key, field in shown.items()
    ]
    return _table(("key", "value", "default", "what it does"), rows)


def _commands() -> str:
    """Returns one row for each command that `adaptkit --help` shows."""
    group: Any = typer.main.get_command(app)
    shown = [(name, command) for name, command in sorted(group.commands.items()) if not command.hidden]
    rows = []
    for name, command in shown:
        arguments = [_argument(parameter) for parameter in command.params if parameter.param_type_name == "argument"]
        options = [f"`{parameter.opts[0]}`" for parameter in command.params if parameter.param_type_name == "option"]
        usage = f"`{' '.join(['adaptkit', name, *arguments])}`"
        rows.append((usage, command.help.partition("\n")[0], " ".join(options)))
    return _table(("command", "what it does", "options"), rows)


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name.upper()).strip("[].") + ("…" if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _columns_that_tell(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Returns a table without the columns that are empty in every row."""
    columns = [column for column in zip(head, *rows, strict=True) if any(column[1:])]
    titles, *cells = zip(*columns, strict=True)
    return _table(titles, cells)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    words = {"None": "null", "True": "true", "False": "false"}
    return f"`{words.get(str(value), value)}`"


def _quoted(words: str) -> str:
    return re.sub(r"'([^']*)'", r"`\1`", words).removesuffix(" or null")


def _summary(cls: type) -> str:
    return (cls.__doc__ or "").partition("\n\n")[0].replace("``", "`").replace("\n    ", " ")


def main() -> None:
    """Writes every table into its file."""
    for name, tables in generated().items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        for table, content in tables.items():
            text = replaced(text, table, content)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
