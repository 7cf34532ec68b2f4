"""From the columns of a file to the roles of a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

import yaml

from adaptkit.data.problems import enumerate_names
from adaptkit.errors import DataError, Problem, did_you_mean
from adaptkit.task import Row

# What public data sets call these roles; proposed in messages, never applied silently.
ALIASES: Mapping[str, Sequence[str]] = {
    "text": ("sentence", "review", "content", "sentence1", "premise", "document", "comment", "message", "body"),
    "text_pair": ("sentence2", "hypothesis", "question2", "answer"),
    "label": ("labels", "sentiment", "class", "target", "category", "stars", "rating", "score"),
}


def select_columns(
    rows: Sequence[Row], roles: Sequence[str], columns: Mapping[str, str], *, optional: Sequence[str] = ()
) -> list[Row]:
    """Renames columns to roles and drops all others.

    Args:
        rows: As they were read.
        roles: What every row needs.
        columns: Role to column, where the two names differ.
        optional: Roles that a row may have; one that ``columns`` names is needed.

    Raises:
        DataError: ``columns`` names an unknown role, or a needed column is missing, in all rows or in some;
            one problem a column.
    """
    known = dict.fromkeys([*roles, *optional])
    problems = [_unknown_role(role, column, known) for role, column in columns.items() if role not in known]
    needed = [role for role in known if role in roles or role in columns]
    column_of = {role: columns.get(role, role) for role in known}
    present = dict.fromkeys(name for row in rows for name in row.values)
    absent = [role for role in needed if rows and column_of[role] not in present]
    problems += _absent_columns(absent, column_of, columns, present, rows[0].where if rows else "")
    for role in needed:
        lacking = [row for row in rows if role not in absent and column_of[role] not in row.values]
        if lacking:
            found = f"{len(lacking):,} of {len(rows):,} rows have no column {column_of[role]!r}, first this one"
            fix = "add the column to these rows, or remove them"
            problems.append(Problem(found, lacking[0].where, enumerate_names(list(lacking[0].values)), fix))
    if problems:
        raise DataError(problems)
    return [
        Row({role: row.values[column] for role, column in column_of.items() if column in row.values}, row.where)
        for row in rows
    ]


def _unknown_role(role: str, column: str, known: Iterable[str]) -> Problem:
    return Problem(
        f"the task has no role {role!r}",
        f"data.columns: {{{role}: {column}}}",
        enumerate_names(list(known)),
        did_you_mean(role, known) or "write role: column",
    )


def _absent_columns(
    absent: Sequence[str], column_of: Mapping[str, str], columns: Mapping[str, str], present: Iterable[str], where: str
) -> list[Problem]:
    """Returns one problem a missing column; all propose the same line for the recipe, ready to paste."""
    free = [name for name in present if name not in {column_of[role] for role in column_of if role not in absent}]
    proposal = {role: column for role, column in columns.items() if role in column_of and role not in absent}
    for role in absent:
        guess = _guess(role, column_of[role], free)
        proposal[role] = guess or "<column>"
        free = [name for name in free if name != guess]
    line = yaml.safe_dump({"columns": proposal}, default_flow_style=True, sort_keys=False, width=1000).strip()
    problems = []
    for role in absent:
        hint = f"did you mean {proposal[role]!r}? " if proposal[role] != "<column>" else ""
        fix = f"{hint}Say in the recipe which column is the {role}:\ndata: {line}"
        problems.append(Problem(f"there is no column {column_of[role]!r}", where, enumerate_names(list(present)), fix))
    return problems


def _guess(role: str, column: str, free: Iterable[str]) -> str | None:
    """Returns the column that was most likely meant: nearly the same name, else an alias, else a similar name."""
    by_lower = {name.lower(): name for name in free}
    wanted = column.lower()
    near = [*get_close_matches(wanted, by_lower, n=1, cutoff=0.8), *ALIASES.get(role, ())]
    similar = get_close_matches(wanted, by_lower, n=1, cutoff=0.6)
    return next((by_lower[name] for name in [*near, *similar] if name in by_lower), None)
