"""Planned against measured peak memory.

    python -m benchmarks memory [--only TEXT] [--write]

On a CPU what is measured is the sum of the allocator's events in torch's profiler, on a GPU
`torch.cuda.max_memory_allocated`. Bases have random weights, made from their configs: no network is needed.
The goals: the plan is off by at most 5 % in the median and 15 % anywhere, and never more than 5 % too low.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from adaptkit.artifact.folder import write_json
from adaptkit.errors import AdaptkitError
from adaptkit.models.precision import best_device
from benchmarks.conformance import strategies
from benchmarks.memory_cases import CASES, ON_A_GPU, THIRD_PARTY, Measured, measure
from benchmarks.report import machine, markdown_table, replace_block

RESULTS = Path("benchmarks/results/memory.json")
DOCUMENT = Path("docs/memory.md")
MIB = 2**20
MEDIAN, WORST, UNDER = 0.05, 0.15, 0.05


def main(arguments: list[str]) -> None:
    """Measures and prints the table; with --write replaces the results and the table in the docs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory")
    parser.add_argument("--only", default="", help="cases whose base or strategy has this text in its name")
    parser.add_argument("--write", action="store_true", help=f"replace the table in {RESULTS} and {DOCUMENT}")
    options = parser.parse_args(arguments)
    kind = best_device().type
    rows, failed = _measured(options.only, ON_A_GPU if kind == "cuda" else CASES)
    recorded = _recorded(RESULTS) | {kind: {"machine": _machine(), "date": f"{date.today()}", "cases": rows}}
    if options.write and not failed and not options.only:
        write_json(RESULTS, recorded)
        replace_block(f"memory-{kind}", report(recorded[kind]), DOCUMENT)
    print(report(recorded[kind]))
    raise SystemExit(1 if failed or not good([row["error"] for row in rows]) else 0)


def good(errors: Sequence[float]) -> bool:
    """Returns whether the goals are met by errors, each a share of what was measured."""
    sizes = [abs(error) for error in errors]
    return bool(errors) and statistics.median(sizes) <= MEDIAN and max(sizes) <= WORST and min(errors) >= -UNDER


def report(recorded: Mapping[str, Any]) -> str:
    """Returns the table of one device: a row a case."""
    cases: Sequence[Mapping[str, Any]] = recorded["cases"]
    rows = [
        (
            f"{case['base']}, {case['strategy']}, {case['precision']}",
            case["settings"],
            f"{case['planned'] / MIB:,.1f}",
            f"{case['measured'] / MIB:,.1f}",
            f"{100 * case['error']:+.1f} %",
        )
        for case in cases
    ]
    errors = [case["error"] for case in cases]
    summary = (
        f"{len(cases)} runs: off by {100 * statistics.median(map(abs, errors)):.1f} % in the median, "
        f"{100 * max(map(abs, errors)):.1f} % at most, {100 * max(0.0, -min(errors)):.1f} % too low at most."
        if cases
        else "Nothing was measured."
    )
    table = markdown_table(("run", "settings", "planned MiB", "measured MiB", "error"), rows) if rows else ""
    return "\n\n".join([summary, table, f"{recorded['machine']}, {recorded['date']}; `python -m benchmarks memory`."])


def _measured(only: str, cases: Sequence[Any]) -> tuple[list[dict[str, Any]], bool]:
    known = strategies()
    others = {name: known[name] for name in THIRD_PARTY}
    rows, failed = [], False
    with tempfile.TemporaryDirectory(prefix="adaptkit-memory-") as folder:
        for case in cases:
            if only not in f"{case.base} {case.strategy}":
                continue
            started = time.monotonic()
            try:
                measured = measure(case, Path(folder), others)
            except (AdaptkitError, RuntimeError) as error:
                failed = True
                print(f"fault: {case.base}, {case.strategy}, {case}: {error}", flush=True)
                continue
            rows.append(_row(measured))
            seconds = time.monotonic() - started
            print(f"{case.base}, {case.strategy}, {case}: {100 * measured.error:+.1f} %, {seconds:.0f} s", flush=True)
    return rows, failed


def _row(measured: Measured) -> dict[str, Any]:
    case = measured.case
    return {
        "base": case.base,
        "strategy": case.strategy,
        "precision": measured.plan.precision,
        "settings": str(case),
        "planned": measured.plan.peak,
        "measured": measured.peak,
        "error": round(measured.error, 5),
        "parts": dict(measured.plan.parts),
    }


def _recorded(path: Path) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return recorded


def _machine() -> str:
    return f"{torch.cuda.get_device_name()}, {machine()}" if torch.cuda.is_available() else machine()
