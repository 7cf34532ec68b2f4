"""Which format rows are written in, told from their columns, and what they are in the roles of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adaptkit.data.columns import (
    UNKNOWN,
    Layout,
    Paste,
    check_roles,
    columns_fix,
    data_line,
    present_columns,
    proposed_columns,
    select_columns,
)
from adaptkit.data.problems import data_error, enumerate_names
from adaptkit.errors import DataError, Problem, RecipeError, did_you_mean
from adaptkit.format import Format
from adaptkit.task import Row, Task

AUTO = "auto"


def layouts_of(task: Task[Any], formats: Mapping[str, type[Format]], *, labelled: bool) -> dict[str, Layout]:
    """Returns every way in which rows of a task may be written, by the name of the format.

    The first one is the task's own: its columns are the roles, and so is its name (``text+label``).

    Args:
        task: Says which roles it reads.
        formats: Those that there are; one that does not give what the task reads is left out.
        labelled: Whether rows need what only labelled rows have.
    """
    needed = {*task.roles, *task.label_roles}
    known = {*needed, *task.optional_roles}
    own = Layout("+".join((*task.roles, *task.label_roles)), _needed(task, labelled), task.optional_roles)
    layouts = {own.name: own}
    for name, cls in sorted(formats.items()):
        if needed <= set(cls.gives) <= known:
            others = (cls.optional_roles, cls.aliases, cls().convert)
            layouts.setdefault(name, Layout(name, _needed(cls, labelled), *others))
    return layouts


def read_as(
    rows: Sequence[Row],
    name: str,
    columns: Mapping[str, str],
    layouts: Mapping[str, Layout],
    *,
    paste: Paste = data_line,
) -> tuple[list[Row], str]:
    """Turns rows as they were read into rows by the roles of a task.

    Args:
        rows: At least one.
        name: Of their format; ``auto``: it is told from their columns.
        columns: Role of the format to column, where the two names differ.
        layouts: Of the task.
        paste: Writes keys as they stand in the recipe.

    Returns:
        As many rows, and the name of the format.

    Raises:
        RecipeError: The task reads no such format.
        DataError: The columns fit no format, or more than one, or not the one that was asked for; one problem for
            each row that the format cannot read.
    """
    layout = _recognise(rows, columns, layouts, paste) if name == AUTO else _named(name, layouts)
    fitting = _fitting(rows, columns, layouts)
    hint = None
    if fitting and layout not in fitting:
        hint = f"these look like {fitting[0].name} rows: {paste(format=fitting[0].name)}"
    selected = select_columns(rows, layout, columns, paste=paste, hint=hint)
    return _converted(selected, layout), layout.name


def _needed(roles: type[Format] | Task[Any], labelled: bool) -> tuple[str, ...]:
    return (*roles.roles, *roles.label_roles) if labelled else roles.roles


def _named(name: str, layouts: Mapping[str, Layout]) -> Layout:
    if name in layouts:
        return layouts[name]
    raise RecipeError(
        f"the task reads no format {name!r}",
        where="data.format",
        allowed=_needs(layouts),
        fix=did_you_mean(name, layouts) or "leave it out to have it told from the columns",
    )


def _fitting(rows: Sequence[Row], columns: Mapping[str, str], layouts: Mapping[str, Layout]) -> list[Layout]:
    # What is needed is needed in every row, so the first one tells, also in a file that mixes formats.
    present = present_columns(rows[:1])
    return [layout for layout in layouts.values() if layout.fits(columns, present)]


def _recognise(rows: Sequence[Row], columns: Mapping[str, str], layouts: Mapping[str, Layout], paste: Paste) -> Layout:
    own, fitting = next(iter(layouts.values())), _fitting(rows, columns, layouts)
    if own in fitting or len(layouts) == 1:
        return own
    if len(fitting) == 1:
        return fitting[0]
    where = rows[0].where
    if fitting:
        names = [layout.name for layout in fitting]
        found = f"the columns fit more than one format: {enumerate_names(names)}"
        raise DataError(found, where=where, allowed=_needs(layouts), fix=f"say which: {paste(format=names[0])}")
    roles = list(dict.fromkeys(role for layout in layouts.values() for role in layout.roles))
    check_roles("the task", columns, roles)
    present = present_columns(rows[:1])
    nearest, fix = _nearest(present, columns, layouts, paste)
    if columns and set(columns) <= set(nearest.roles):
        return nearest  # The recipe says which columns are meant, so one that is not there is what is wrong.
    found = f"the columns {enumerate_names(present)} fit no format that the task reads"
    raise DataError(found, where=where, allowed=_needs(layouts), fix=fix)


def _needs(layouts: Mapping[str, Layout]) -> str:
    """Returns the columns of each format, a line each."""
    lines = []
    for layout in layouts.values():
        needed = ", ".join(" or ".join((role, *layout.aliases.get(role, ()))) for role in layout.needed)
        optional = f" (perhaps {', '.join(layout.optional)})" if layout.optional else ""
        lines.append(f"{layout.name}: {needed}{optional}")
    return "\n".join(lines)


def _nearest(
    present: Sequence[str], columns: Mapping[str, str], layouts: Mapping[str, Layout], paste: Paste
) -> tuple[Layout, str]:
    """Returns the format that is nearest to the columns and to the recipe, and how they would fit it."""
    proposals: dict[str, dict[str, str]] = {}
    for layout in layouts.values():
        column_of = layout.column_of(columns, present)
        absent = [role for role in layout.needed if column_of[role] not in present]
        proposals[layout.name] = proposed_columns(absent, column_of, columns, present)
    own, *_ = layouts
    name = min(proposals, key=lambda name: _distance(proposals[name], columns))
    named = {} if name == own else {"format": name}
    return layouts[name], columns_fix(proposals[name], present, paste(**named, columns=proposals[name]))


def _distance(proposal: Mapping[str, str], columns: Mapping[str, str]) -> tuple[int, int]:
    """Returns how many of the recipe's roles a proposal leaves out, and how many columns it does not know."""
    return len(set(columns) - set(proposal)), list(proposal.values()).count(UNKNOWN)


def _converted(rows: Sequence[Row], layout: Layout) -> list[Row]:
    if layout.convert is None:
        return list(rows)
    converted: list[Row] = []
    problems: list[Problem] = []
    for row in rows:
        try:
            converted.append(Row(layout.convert(row.values), row.where))  # the columns are the format's
        except DataError as error:
            problems += [replace(problem, where=problem.where or row.where) for problem in error.problems]
    if problems:
        raise data_error(problems)
    return converted
