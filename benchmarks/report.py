"""What every benchmark writes: a table, the machine that it ran on, and its block of the README."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from adaptkit.artifact.folder import write_text
from adaptkit.errors import DataError

README = Path("README.md")
LIBRARIES = ("torch", "transformers", "peft")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table, padded so that it reads in a terminal too; all but the first column to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(cells, widths) for cells in (header, rules, *rows))


def machine() -> str:
    """Returns processor, cores and versions in one line."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    cores = f"{_cores()} core{'s' * (_cores() > 1)}"
    return f"{_processor()}, {cores}, {platform.system()}, Python {platform.python_version()}, {libraries}"


def replace_block(name: str, body: str, path: Path = README) -> None:
    """Replaces what stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``, and nothing else.

    Raises:
        DataError: The file does not have both markers, once and in this order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = path.read_text(encoding="utf-8")
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end or begin in rest or end in before + after:
        raise DataError(
            f"no place for the table {name!r}",
            where=str(path),
            allowed=f"{begin} and, after it, {end}, once each",
            fix="put both lines where the table belongs",
        )
    write_text(path, f"{before}{begin}\n{body.strip()}\n{end}{after}")


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return f"| {first[0]:<{first[1]}} | " + " | ".join(f"{cell:>{width}}" for cell, width in others) + " |"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _cores() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
