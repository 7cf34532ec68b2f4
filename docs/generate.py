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

import typer.main
from pydantic.fields import FieldInfo

from adaptkit.cli.app import app
from adaptkit.plugins import DISTRIBUTION
from adaptkit.recipe import DataSpec, ModelSpec, Options, TrainingSpec
from adaptkit.recipe.describe import Description
from adaptkit.registry import Entry, load_registry
from adaptkit.strategy import Family, Strategy
from adaptkit.task import Task

ROOT = Path(__file__).resolve().parents[1]


def generated() -> dict[str, dict[str, str]]:
    """Returns the tables of each file, by the path of the file and the name of the table."""
    registry = load_registry()
    strategies = _built_in(registry.strategies)
    return {
        "README.md": {"commands": _commands()},
        "docs/recipes.md": {
            "model": _keys("model", ModelSpec),
            "data": _keys("data", DataSpec),
            "training": _keys("training", TrainingSpec),
            "tasks": "\n\n".join(_task(task) for task in _built_in(registry.tasks)),
            "strategies": "\n\n".join(_strategy(strategy) for strategy in strategies),
            "optimizers": ", ".join(f"`{name}`" for name in sorted(registry.optimizers)),
        },
    }


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


def _task(task: type[Task[Any]]) -> str:
    families = ", ".join(sorted(task.capabilities.families))
    columns = ", ".join(f"`{role}`" for role in (*task.roles, *task.label_roles, *task.optional_roles))
    return (
        f"### {task.name}\n\n{_summary(task)} Models: {families}. Columns: {columns}.\n\n{_keys('task', task.Options)}"
    )


def _strategy(strategy: type[Strategy[Any]]) -> str:
    chosen = strategy(strategy.Options(name=strategy.name))
    rates = {family: f"{chosen.learning_rate(family):.0e}".replace("e-0", "e-") for family in get_args(Family)}
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
