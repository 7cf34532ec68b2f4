"""The names of labels and tags: their order, their numbers, their weights, and those that do not belong."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from adaptkit.data.problems import enumerate_names
from adaptkit.errors import Problem, did_you_mean

SHOWN_COUNTS = 12


def ordered(names: Iterable[str]) -> list[str]:
    """Returns names in numeric order if all are whole numbers (``2`` before ``10``), else in alphabetic order."""
    distinct = set(names)
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), name))
    return sorted(distinct)


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Returns weights by which every class counts alike; their mean over the training rows is 1.

    n / (classes * rows of the class), after King and Zeng, "Logistic Regression in Rare Events Data" (2001).
    A class without training rows has weight 1.
    """
    seen = sum(count > 0 for count in counts)
    return [sum(counts) / (seen * count) if count else 1.0 for count in counts]


def foreign_names(
    given: Iterable[tuple[str, str]], allowed: Sequence[str], found: str, fix: str, *, noun: str = "label"
) -> list[Problem]:
    """Returns one problem for each name that is not allowed, at the first row that has it.

    Args:
        given: A name and its row, for every time that a name is given.
        allowed: Names.
        found: What to say of a name that is not one of them.
        fix: What to do about it.
        noun: What the names are called.
    """
    known = set(allowed)
    rows: Counter[str] = Counter()
    first: dict[str, str] = {}
    for name, where in given:
        if name not in known:
            rows[name] += 1
            first.setdefault(name, where)
    problems = []
    for name, count in rows.items():
        more = f" ({count:,} times, this is the first)" if count > 1 else ""
        hint = did_you_mean(name, allowed)
        text = f"{hint} Otherwise {fix}" if hint else fix
        problems.append(Problem(f"the {noun} {name!r} {found}{more}", first[name], enumerate_names(allowed), text))
    return problems


def alike(names: Iterable[str], noun: str) -> list[str]:
    """Returns a note about names that a person reads as one: they differ in case, spaces or the code of a letter."""
    groups: dict[str, list[str]] = {}
    for name in names:
        read = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        groups.setdefault(read, []).append(name)
    twins = [enumerate_names(group) for group in groups.values() if len(group) > 1]
    if not twins:
        return []
    more = f" and {len(twins) - 1:,} more such groups" if len(twins) > 1 else ""
    return [f"{twins[0]}{more} are {noun}s of their own, although they read alike"]


def count_line(noun: str, names: Sequence[str], counts: Sequence[int]) -> str:
    """Returns ``2 labels: good 29, bad 15`` for a person, the most frequent names first; a long list is cut."""
    pairs = sorted(zip(names, counts, strict=True), key=lambda pair: -pair[1])
    shown = ", ".join(f"{name} {count:,}" for name, count in pairs[:SHOWN_COUNTS])
    hidden = len(pairs) - SHOWN_COUNTS
    return f"{len(pairs):,} {noun}s: {shown}" + (f" and {hidden:,} more" if hidden > 0 else "")
