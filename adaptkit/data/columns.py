"""From the columns of a file to roles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, TypeAlias

import yaml

from adaptkit.data.problems import enumerate_names
from adaptkit.errors import DataError, Problem, RecipeError, did_you_mean
from adaptkit.task import Row

# What public data sets call these roles; proposed in messages, never applied silently. A dot at the end stands for
# any key of an object.
NEAR_NAMES: Mapping[str, Sequence[str]] = {
    "text": ("sentence", "review", "content", "sentence1", "premise", "document", "comment", "message", "body"),
    "text_pair": ("sentence2", "hypothesis", "question2", "answer"),
    "label": ("labels", "sentiment", "class", "target", "category", "stars", "rating", "score"),
    "tokens": ("words", "token", "form"),
    "tags": ("ner_tags", "pos_tags", "upos", "labels", "ner", "pos"),
    "messages": ("chat", "dialog", "dialogue", "turns"),
    "prompt": ("question", "query", "input"),
    "completion": ("answer", "response", "output"),
    "source": ("document", "article", "input", "question", "text", "src", "translation."),
    "target": ("summary", "highlights", "output", "answer", "tgt", "translation."),
}
# Which task reads rows of such columns as they are; proposed where the columns of a file fit nothing else.
USUAL_TASKS: Sequence[tuple[Sequence[str], str]] = (
    (("messages",), "sft"),
    (("conversations",), "sft"),
    (("instruction", "output"), "sft"),
    (("prompt", "completion"), "sft"),
    (("tokens", "tags"), "token-classification"),
    (("source", "target"), "seq2seq"),
    (("text", "label"), "text-classification"),
    (("text",), "causal-lm"),
)
ABSENT: Any = object()
UNKNOWN = "<column>"
Paste: TypeAlias = Callable[..., str]


def data_line(**keys: Any) -> str:
    """Returns keys of the recipe's data section in one line, ready to paste."""
    return f"data: {flow(keys)}"


def flow(value: Any) -> str:
    """Returns a value as YAML in one line."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).strip()


@dataclass(frozen=True)
class Layout:
    """The columns of rows that are written in one way.

    Attributes:
        name: Of the format.
        needed: Roles that every row has.
        optional: Roles that a row may have.
        aliases: Other names for the column of a role.
        convert: From values by these roles to values by the task's; None where these are the task's own.
    """

    name: str
    needed: Sequence[str]
    optional: Sequence[str] = ()
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    convert: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None

    @property
    def owner(self) -> str:
        """What a message calls it."""
        return f"the format {self.name}" if self.convert else "the task"

    @property
    def roles(self) -> list[str]:
        """Every role, once."""
        return list(dict.fromkeys([*self.needed, *self.optional]))

    def column_of(self, columns: Mapping[str, str], present: Iterable[str]) -> dict[str, str]:
        """Returns the column of each role: what the recipe says, else the role's name or an alias that is there."""
        names = set(present)
        aliases = {role: (role, *self.aliases.get(role, ())) for role in self.roles}
        found = {role: next((name for name in aliases[role] if name in names), role) for role in self.roles}
        return found | {role: column for role, column in columns.items() if role in found}

    def fits(self, columns: Mapping[str, str], present: Iterable[str]) -> bool:
        """Whether rows with these columns can be read so, and the recipe says nothing against it."""
        names = set(present)
        column_of = self.column_of(columns, names)
        return set(columns) <= set(self.roles) and all(column_of[role] in names for role in self.needed)


def present_columns(rows: Sequence[Row]) -> list[str]:
    """Returns the columns that any row has, keys of objects as ``column.key``."""
    names: dict[str, None] = {}
    for row in rows:
        for name, value in row.values.items():
            names[name] = None
            if isinstance(value, Mapping):
                names.update(dict.fromkeys(f"{name}.{key}" for key in value))
    return list(names)


def column_value(row: Row, column: str) -> Any:
    """Returns what a row has in a column, which may be ``column.key``; `ABSENT` where it has no such column."""
    if column in row.values:
        return row.values[column]
    name, _, key = column.partition(".")
    inner = row.values.get(name)
    return inner.get(key, ABSENT) if isinstance(inner, Mapping) else ABSENT


def select_columns(
    rows: Sequence[Row],
    layout: Layout,
    columns: Mapping[str, str],
    *,
    paste: Paste = data_line,
    hint: str | None = None,
) -> list[Row]:
    """Renames columns to roles and drops all others.

    Args:
        rows: As they were read.
        layout: Which roles there are.
        columns: Role to column, where the two names differ; an optional role that is named here is needed.
        paste: Writes keys as they stand in the recipe.
        hint: What to do about missing columns; default: the keys to paste.

    Raises:
        RecipeError: ``columns`` names an unknown role; one problem a role.
        DataError: A needed column is missing, in all rows or in some; one problem a column.
    """
    present = present_columns(rows)
    check_roles(layout.owner, columns, layout.roles)
    problems = []
    needed = [role for role in layout.roles if role in layout.needed or role in columns]
    column_of = layout.column_of(columns, present)
    absent = [role for role in needed if rows and column_of[role] not in present]
    proposal = proposed_columns(absent, column_of, columns, present)
    for role in absent:
        fix = hint or _fix(role, proposal, present, paste)
        problems.append(
            Problem(f"there is no column {column_of[role]!r}", rows[0].where, enumerate_names(present), fix)
        )
    for role in needed:
        lacking = [row for row in rows if role not in absent and column_value(row, column_of[role]) is ABSENT]
        if lacking:
            found = f"{len(lacking):,} of {len(rows):,} rows have no column {column_of[role]!r}, first this one"
            fix = "add the column to these rows, or remove them"
            problems.append(Problem(found, lacking[0].where, enumerate_names(list(lacking[0].values)), fix))
    if problems:
        raise DataError(problems)
    return [Row(_selected(row, column_of), row.where, column_of) for row in rows]


def _selected(row: Row, column_of: Mapping[str, str]) -> dict[str, Any]:
    values = {role: column_value(row, column) for role, column in column_of.items()}
    return {role: value for role, value in values.items() if value is not ABSENT}


def check_roles(owner: str, columns: Mapping[str, str], known: Sequence[str]) -> None:
    """Raises where ``data.columns`` names roles that its owner, the task or a format, does not have.

    Raises:
        RecipeError: One problem a role.
    """
    problems = [
        Problem(
            f"{owner} has no role {role!r}",
            f"data.columns: {{{role}: {column}}}",
            enumerate_names(known),
            did_you_mean(role, known) or "write role: column",
        )
        for role, column in columns.items()
        if role not in known
    ]
    if problems:
        raise RecipeError(problems)


def proposed_columns(
    absent: Sequence[str], column_of: Mapping[str, str], columns: Mapping[str, str], present: Iterable[str]
) -> dict[str, str]:
    """Returns ``data.columns`` with a likely column for each role that has none; `UNKNOWN` where none is likely."""
    names = list(present)
    taken = {column_of[role] for role in column_of if role not in absent}
    objects = {name.partition(".")[0] for name in names if "." in name}
    free = [name for name in names if name not in taken | objects]
    proposal = {role: column for role, column in columns.items() if role in column_of and role not in absent}
    for role in absent:
        guess = _guess(role, column_of[role], free)
        proposal[role] = guess or UNKNOWN
        free = [name for name in free if name != guess]
    return proposal


def _fix(role: str, proposal: Mapping[str, str], present: Sequence[str], paste: Paste) -> str:
    if proposal[role] == UNKNOWN:
        return columns_fix(proposal, present, paste(columns=dict(proposal)))
    return f"did you mean {proposal[role]!r}? {columns_fix(proposal, present, paste(columns=dict(proposal)))}"


def columns_fix(proposal: Mapping[str, str], present: Sequence[str], line: str) -> str:
    """Returns what to do about missing columns.

    Args:
        proposal: Role to column, `UNKNOWN` where none is likely.
        present: The columns that there are.
        line: Of the recipe, with this proposal.
    """
    say = f"say in the recipe which column is which:\n{line}"
    if UNKNOWN not in proposal.values():
        return say
    task = next((task for columns, task in USUAL_TASKS if set(columns) <= set(present)), None)
    if task and set(proposal.values()) == {UNKNOWN}:
        return f"choose the task that reads such rows, task: {task}; or {say}"
    return f"add what is missing to the rows, or {say}"


def _guess(role: str, column: str, free: Iterable[str]) -> str | None:
    """Returns the column that was most likely meant: nearly the same name, else a usual one, else a similar name."""
    by_lower = {name.lower(): name for name in free}
    wanted = column.lower()
    near = get_close_matches(wanted, by_lower, n=1, cutoff=0.8)
    usual = [
        name
        for known in NEAR_NAMES.get(role, ())
        for name in by_lower
        if name == known or (known.endswith(".") and name.startswith(known))
    ]
    similar = get_close_matches(wanted, by_lower, n=1, cutoff=0.6)
    return next((by_lower[name] for name in [*near, *usual, *similar]), None)
