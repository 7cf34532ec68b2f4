"""Tables that fit the terminal, and 100 columns anywhere else."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

MAX_WIDTH = 100


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Collection[str] = ()) -> None:
    """Prints rows in aligned columns; the first column is never broken, the others wrap.

    Args:
        headers: One a column.
        rows: Texts, as many as there are headers; a column without any is left out.
        numbers: Headers of columns that end at the right.
    """
    from rich.console import Console
    from rich.table import Table

    width = min(shutil.get_terminal_size((MAX_WIDTH, 24)).columns, MAX_WIDTH)
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    columns: list[list[str]] = []
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, (header, *cells) in enumerate(zip(headers, *rows, strict=True)):
        if any(cells):
            side: Any = "right" if header in numbers else "left"
            table.add_column(header, no_wrap=index == 0, overflow="fold", justify=side)
            columns.append(cells)
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def first_line(value: Any) -> str:
    """Returns the first line of a docstring without the marks of code, for a class without one that of its module."""
    text = value.__doc__
    if text is None and isinstance(value, type):
        text = sys.modules[value.__module__].__doc__
    return (text or "").strip().partition("\n")[0].replace("``", "")
