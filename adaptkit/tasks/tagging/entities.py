"""Entities that BIO tags mark, and how many of them a model finds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

OUTSIDE = "O"
BIO_TAG = re.compile(r"O|[BI]-.+", re.DOTALL)


def is_bio(tags: Iterable[str]) -> bool:
    """Returns whether tags are of the scheme BIO: ``O``, ``B-x`` and ``I-x``, and not ``O`` alone."""
    distinct = set(tags)
    return all(BIO_TAG.fullmatch(tag) for tag in distinct) and distinct != {OUTSIDE}


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Returns type, first and last word of the entities of one row.

    An entity begins at ``B-x``, and at an ``I-x`` that continues none of type x, so that IOB1 and what a model
    makes up are read too: the rule of CoNLL's ``conlleval``, which seqeval follows where it is not strict.
    """
    found: set[tuple[str, int, int]] = set()
    inside, first = "", 0
    for number, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, name = tag.partition("-")
        if inside and not (prefix == "I" and name == inside):
            found.add((inside, first, number - 1))
            inside = ""
        if not inside and prefix != OUTSIDE:
            inside, first = name, number
    return found


def unopened(tags: Sequence[str]) -> int:
    """Returns how many entities of a row begin with ``I-``."""
    return sum(tags[first].startswith("I-") for _, first, _ in entities(tags))


class EntityCounts:
    """Counts entities: those of the rows, those that a model found, and those that are both."""

    def __init__(self) -> None:
        self._true, self._found, self._right = 0, 0, 0

    def update(self, true: Sequence[str], predicted: Sequence[str]) -> None:
        """Adds the tags of one row. An entity is right when its type and both its ends are."""
        wanted, found = entities(true), entities(predicted)
        self._true += len(wanted)
        self._found += len(found)
        self._right += len(wanted & found)

    def compute(self) -> dict[str, float]:
        """Returns ``precision``, ``recall`` and ``f1`` over the entities of all types; 0 where there are none."""
        return {
            "precision": self._right / max(1, self._found),
            "recall": self._right / max(1, self._true),
            "f1": 2 * self._right / max(1, self._true + self._found),
        }
