"""Rows of words with one tag each: read, and checked field by field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from adaptkit.data.problems import is_missing, kind_of, text_problem
from adaptkit.errors import Problem
from adaptkit.task import Row
from adaptkit.tasks._examples import name_problem

Check: TypeAlias = Callable[[Any], tuple[str, str] | None]


@dataclass(frozen=True)
class Sentence:
    """One row of a tagging data set.

    Attributes:
        tokens: Its words.
        tags: One a word; None where the row has none.
        where: Of the row.
    """

    tokens: list[str]
    tags: list[str] | None
    where: str


def read_sentences(rows: Sequence[Row], *, labelled: bool) -> tuple[list[Sentence], list[Problem]]:
    """Reads rows, and finds everything that is wrong with them.

    Args:
        rows: By role.
        labelled: Every row needs tags; otherwise they may be missing or null.

    Returns:
        One sentence for each row that is good, and the problems of the others.
    """
    sentences, problems = [], []
    for row in rows:
        tokens: Any = row.values.get("tokens")
        tags: Any = row.values.get("tags")
        tagged = labelled or tags is not None
        checks = {
            "tokens": _list_problem("token", tokens, '["A", "fine", "film"]', text_problem),
            "tags": _list_problem("tag", tags, '["DT", "JJ", "NN"]', name_problem) if tagged else None,
        }
        if tagged and not any(checks.values()) and len(tags) != len(tokens):
            found = f"the numbers of tokens ({len(tokens):,}) and tags ({len(tags):,}) differ"
            checks["tags"] = (found, "give every token one tag, or remove the row")
        for role, check in checks.items():
            if check:
                problems.append(Problem(check[0], row.place(role), fix=check[1]))
        if not any(checks.values()):
            sentences.append(Sentence(list(tokens), [str(tag) for tag in tags] if tagged else None, row.where))
    return sentences, problems


def _list_problem(noun: str, value: Any, example: str, check: Check) -> tuple[str, str] | None:
    """Returns what is wrong with the words or the tags of a row, and what to do; of several elements the first."""
    if is_missing(value):
        return f"the {noun}s are null", f"write a list, such as {example}, or remove the row"
    if not isinstance(value, list):
        return f"the {noun}s are {kind_of(value)}, not a list", f"write a list, such as {example}"
    if not value:
        return f"the list of {noun}s is empty", "remove the row"
    for number, element in enumerate(value, 1):
        found = check(element)
        if found:
            return f"{noun} {number} {found[0]}", "repair it, or remove the token and its tag"
    return None
