"""The support matrix: every strategy on every family, task and storage of the base, by running each cell.

    python -m benchmarks matrix [--strategies lora,qlora] [--write]

A cell is a run on a tiny model. It works when it trains for two steps, also with packing where task and strategy
declare it, is saved, and is loaded again to the same figures, bit for bit, and to an answer. It may instead be
refused, by an error that a person sees before anything trains; that error is the reason in the table. Anything else
is a fault.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adaptkit.artifact.folder import write_text
from benchmarks.cells import FAULT, PRECISIONS, REFUSED, WORKS, Cell, Outcome, Trials, all_cells
from benchmarks.report import machine, replace_block

DOCUMENT = Path("docs/support.md")
RESULTS = Path("benchmarks/results/matrix.json")
UNSERVED = "the task does not work"
Column = tuple[str, str]


def main(arguments: list[str]) -> None:
    """Runs the cells and prints them; with --write replaces the results and the tables in the documentation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks matrix")
    parser.add_argument("--strategies", default="", help="names, separated by commas; default: all")
    parser.add_argument("--write", action="store_true", help=f"replace {RESULTS} and the tables in {DOCUMENT}")
    options = parser.parse_args(arguments)
    chosen = [name for name in options.strategies.split(",") if name]
    if options.write and chosen:
        parser.error("--write is for the whole matrix, without --strategies")
    outcomes = list(run(chosen))
    results = {"machine": f"{machine()}, bitsandbytes {version('bitsandbytes')}", **as_json(outcomes)}
    if options.write:
        write_text(RESULTS, dump(results))
        replace_block("support", report(results), DOCUMENT)
    else:
        print(report(results))
    raise SystemExit(1 if any(outcome.state == FAULT for outcome in outcomes) else 0)


def run(strategies: Sequence[str]) -> Iterator[Outcome]:
    """Yields the outcome of every cell, and prints faults as they come."""
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder))
        for cell in all_cells(trials.registry, strategies):
            outcome = trials.outcome(cell)
            if outcome.state == FAULT:
                print(f"fault: {cell.strategy}, {cell.family}, {cell.task}, {cell.precision}: {outcome.reason}")
            yield outcome


# -- the results as a file --------------------------------------------------------------------------


def as_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns ``reasons``, each ``state: reason``, and ``cells``: a line per strategy, task and family.

    A line ends with a number for each of ``precisions``: its place in ``reasons``, the first of which is `WORKS`.
    """
    reasons = {WORKS: 0}
    lines: dict[tuple[str, str, str], list[int]] = {}
    for outcome in outcomes:
        cell = outcome.cell
        text = outcome.state if outcome.state == WORKS else f"{outcome.state}: {outcome.reason}"
        line = lines.setdefault((cell.strategy, cell.task, cell.family), [])
        line.append(reasons.setdefault(text, len(reasons)))
    cells = [[*names, numbers] for names, numbers in lines.items()]
    return {"precisions": list(PRECISIONS), "reasons": list(reasons), "cells": cells}


def from_json(results: dict[str, Any]) -> list[Outcome]:
    """Returns the outcomes that `as_json` was given."""
    outcomes = []
    for strategy, task, family, numbers in results["cells"]:
        for precision, number in zip(results["precisions"], numbers, strict=True):
            state, _, reason = results["reasons"][number].partition(": ")
            outcomes.append(Outcome(Cell(strategy, family, task, precision), state, reason))
    return outcomes


def dump(results: dict[str, Any]) -> str:
    """Returns the file: JSON with a line for each line of the matrix, so that a change of one shows as one."""
    cells = ",\n".join(json.dumps(line) for line in results["cells"])
    rest = json.dumps({key: value for key, value in results.items() if key != "cells"}, indent=1)
    return f'{rest[:-2]},\n "cells": [\n{cells}\n]}}\n'


# -- the results as a page ----------------------------------------------------------------------------


def report(results: dict[str, Any]) -> str:
    """Returns the tables: a row a strategy, a column a task and family, in each cell the precisions that work."""
    outcomes = from_json(results)
    places = dict.fromkeys((o.cell.task, o.cell.family) for o in outcomes)
    missing = dict.fromkeys((o.cell.task, o.cell.family) for o in outcomes if o.reason.startswith(UNSERVED))
    columns = [place for place in places if place not in missing]
    counts = Counter(o.state for o in outcomes)
    notes: dict[str, int] = {}
    parts = [
        f"{len(outcomes):,} combinations: {counts[WORKS]:,} work, {counts[REFUSED]:,} are refused with a reason, "
        f"{counts[FAULT]:,} fail."
    ]
    for title, prefixed in (("The built-in strategies", False), ("PEFT's methods", True)):
        rows = [o for o in outcomes if o.cell.strategy.startswith("peft:") == prefixed]
        if rows:
            parts += [f"## {title}", _table(rows, columns, notes)]
    return "\n\n".join(
        [
            *parts,
            "## Reasons",
            "\n".join(f"{number}. {reason}" for reason, number in notes.items()),
            f"Refused for every strategy, because the task does not work with these models: {_by_task(missing)}.",
            f"{results['machine']}; `python -m benchmarks matrix --write`.",
        ]
    )


def _by_task(columns: Iterable[Column]) -> str:
    families: dict[str, list[str]] = {}
    for task, family in columns:
        families.setdefault(task, []).append(family)
    return "; ".join(f"`{task}` with {' and '.join(names)}" for task, names in families.items())


def _table(outcomes: Sequence[Outcome], columns: Sequence[Column], notes: dict[str, int]) -> str:
    by_place: dict[tuple[str, Column], list[Outcome]] = {}
    for o in outcomes:
        by_place.setdefault((o.cell.strategy, (o.cell.task, o.cell.family)), []).append(o)
    lines = [["strategy", *(f"{task}<br>{family}" for task, family in columns)], ["---"] * (len(columns) + 1)]
    for strategy in dict.fromkeys(o.cell.strategy for o in outcomes):
        lines.append([f"`{strategy}`", *(_content(by_place[strategy, column], notes) for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _content(here: Sequence[Outcome], notes: dict[str, int]) -> str:
    """Returns the precisions that work, and a number for each reason why others do not."""
    works = [o.cell.precision for o in here if o.state == WORKS]
    reasons = [f"FAULT: {o.reason}" if o.state == FAULT else o.reason for o in here if o.state != WORKS]
    numbers = sorted({notes.setdefault(reason, len(notes) + 1) for reason in reasons})
    marks = f"<sup>{' '.join(map(str, numbers))}</sup>" if numbers else ""
    return ("all" if len(works) == len(here) else " ".join(works) or "-") + marks
