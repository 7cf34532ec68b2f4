"""How much a person is shown at once when data is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from adaptkit.errors import DataError, Problem

MAX_SHOWN = 10


def data_error(problems: Sequence[Problem]) -> DataError:
    """Returns one error for all problems: the first ten in full, the rest as a number."""
    shown = list(problems[:MAX_SHOWN])
    hidden = len(problems) - len(shown)
    if hidden:
        shown.append(Problem(f"{hidden:,} more problems"))
    return DataError(shown)


def enumerate_names(names: Sequence[str], limit: int = 20) -> str:
    """Returns ``'a', 'b'`` for a message; a long list is cut and ends with how many are left out."""
    text = ", ".join(repr(name) for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit:,} more"
