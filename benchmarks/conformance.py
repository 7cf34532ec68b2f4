"""The conformance of every strategy: the built-in ones, PEFT's methods, and the packages of plugins/.

    python -m benchmarks conformance [--strategies lora,bitfit] [--write]

Every check of `adaptkit.testing` is tried on every tiny base. What a strategy cannot pass it declares with the reason
(``known_failures``); anything else that fails is a fault. Strategies run with their default options, but for those
of `benchmarks.cells.STRATEGY_OPTIONS`. With names, --write replaces their results and keeps those of the others.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adaptkit.artifact.folder import write_text
from adaptkit.plugins import DISTRIBUTION, GROUP
from adaptkit.registry import load_registry
from adaptkit.strategy import Strategy
from adaptkit.testing import Outcome, run_checks
from benchmarks.cells import STRATEGY_OPTIONS
from benchmarks.report import machine, replace_block

DOCUMENT = Path("docs/support.md")
RESULTS = Path("benchmarks/results/conformance.json")
PLUGINS = Path(__file__).parents[1] / "plugins"


def main(arguments: list[str]) -> None:
    """Runs the checks and prints what is wrong; with --write replaces the results and the table in the docs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks conformance")
    parser.add_argument("--strategies", default="", help="names, separated by commas; default: all")
    parser.add_argument("--write", action="store_true", help=f"replace them in {RESULTS} and {DOCUMENT}")
    options = parser.parse_args(arguments)
    chosen = [name for name in options.strategies.split(",") if name]
    known = strategies()
    results = {name: _tried(known[name]) for name in chosen or known}
    if options.write and chosen:
        before = json.loads(RESULTS.read_text(encoding="utf-8"))["strategies"]
        results = {name: results.get(name) or before[name] for name in known}
    recorded = {"machine": f"{machine()}, bitsandbytes {version('bitsandbytes')}", "strategies": results}
    if options.write:
        write_text(RESULTS, json.dumps(recorded, indent=1) + "\n")
        replace_block("conformance", report(recorded), DOCUMENT)
    print(report(recorded))
    raise SystemExit(1 if any("failed" in result["states"] for result in results.values()) else 0)


def strategies() -> dict[str, type[Strategy[Any]]]:
    """Returns what adaptkit brings and what the packages of plugins/ bring, by name."""
    built_in = {
        name: entry.value
        for name, entry in sorted(load_registry().strategies.items(), key=lambda item: (":" in item[0], item[0]))
        if entry.distribution == DISTRIBUTION
    }
    packages = [project.parent for project in sorted(PLUGINS.glob("*/pyproject.toml"))]
    return built_in | {cls.name: cls for package in packages for cls in _brought(package)}


def _brought(package: Path) -> Iterator[type[Strategy[Any]]]:
    """Yields the strategies of a package that need not be installed."""
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if str(package) not in sys.path:
        sys.path.append(str(package))
    for module in project["entry-points"][GROUP].values():
        found: list[type[Strategy[Any]]] = []
        importlib.import_module(module).adaptkit_register_strategies(found.append)
        yield from found


def _tried(cls: type[Strategy[Any]]) -> dict[str, Any]:
    """Returns how many checks ended how, the reasons of what did not pass, and the seconds that all took."""
    started = time.monotonic()
    strategy = cls(cls.Options.model_validate({"name": cls.name, **STRATEGY_OPTIONS.get(cls.name, {})}))
    outcomes = list(run_checks(strategy))
    for outcome in outcomes:
        if not outcome.good:
            print(f"fault: {outcome}", flush=True)
    print(f"{cls.name}: {time.monotonic() - started:.0f} s", flush=True)
    return {
        "states": dict(Counter(outcome.state for outcome in outcomes)),
        "reasons": [_reason(outcome) for outcome in outcomes if outcome.state not in ("passed", "not applicable")],
        "seconds": round(time.monotonic() - started),
    }


def _reason(outcome: Outcome) -> dict[str, str]:
    return {"check": outcome.check, "base": outcome.base, "state": outcome.state, "reason": outcome.reason}


def report(recorded: Mapping[str, Any]) -> str:
    """Returns the table: a row a strategy, and below what some cannot pass."""
    results: Mapping[str, Mapping[str, Any]] = recorded["strategies"]
    rows = [
        (f"`{name}`", states.get("passed", 0), states.get("expected failure", 0), states.get("not applicable", 0))
        for name, states in ((name, result["states"]) for name, result in results.items())
    ]
    lines = ["| strategy | pass | known to fail | do not apply |", "| --- | --: | --: | --: |"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    known = sum(len(result["reasons"]) for result in results.values())
    seconds = [result["seconds"] for result in results.values()]
    count = sum(sum(result["states"].values()) for result in results.values())
    notes = dict.fromkeys(
        f"- `{name}`, {reason['check']}: {reason['reason']}."
        for name, result in results.items()
        for reason in result["reasons"]
    )
    return "\n\n".join(
        [
            f"{count:,} checks, of which {known} are known to fail; those of one strategy took "
            f"{statistics.median(seconds):.0f} s in the median and {max(seconds)} s at most.",
            "\n".join(lines),
            *(["What some cannot pass, and why:", "\n".join(notes)] if notes else []),
            f"{recorded['machine']}; `python -m benchmarks conformance --write`.",
        ]
    )
