"""metrics.jsonl: one JSON object per step and evaluation, never a number that is not one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends to a run's ``metrics.jsonl``.

    Args:
        path: The file.
        after_step: Lines of later steps are dropped, for a run that resumes from this one.
    """

    def __init__(self, path: Path, *, after_step: int = 0) -> None:
        self._path = path
        # What a crash of the machine has left of a line need not even be text.
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        lines = text.splitlines(keepends=True)
        kept = [line for line in lines if _step(line) <= after_step]
        if len(kept) != len(lines):
            staged = path.with_name(f".tmp-{path.name}")
            staged.write_text("".join(kept), encoding="utf-8")
            os.replace(staged, path)  # killed at any moment, the log is the old one or the new one

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one object; the file is complete after every call."""
        line = json.dumps({"step": step, **values}, allow_nan=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _step(line: str) -> float:
    """Returns the step of a line; a line that a crash cut off belongs to no step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
