"""The names of labels: their order, their weights, and those that do not belong."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from adaptkit.data.problems import enumerate_names
from adaptkit.errors import Problem, did_you_mean
from adaptkit.tasks._examples import Example


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


def foreign_labels(examples: Sequence[Example], allowed: Sequence[str], found: str, fix: str) -> list[Problem]:
    """Returns one problem for each label that is not allowed, at the first row that has it.

    Args:
        examples: Those without a label are passed over.
        allowed: Names of labels.
        found: What to say of such a label.
        fix: What to do about it.
    """
    known = set(allowed)
    rows = Counter(example.label for example in examples if example.label is not None and example.label not in known)
    first = {example.label: example.where for example in reversed(examples)}
    problems = []
    for label, count in rows.items():
        more = f" ({count:,} rows, this is the first)" if count > 1 else ""
        hint = did_you_mean(label, allowed)
        text = f"{hint} Otherwise {fix}" if hint else fix
        problems.append(Problem(f"the label {label!r} {found}{more}", first[label], enumerate_names(allowed), text))
    return problems
