"""``adaptkit check``: the conformance checks, on what a plugin brings."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptkit.cli.tables import print_table

if TYPE_CHECKING:
    from adaptkit.registry import Registry
    from adaptkit.strategy import Strategy
    from adaptkit.testing import Outcome

MARKS = {
    "passed": "ok",
    "failed": "FAILED",
    "unexpected pass": "FAILED",
    "expected failure": "known",
    "not applicable": "-",
}


def add_commands(app: typer.Typer) -> None:
    """Adds this module's command."""
    app.command("check")(check)


def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A strategy, or a distribution that brings some.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE…]", help="Options of the strategy, as num_layers=1.")
    ] = None,
) -> None:
    """Check that a strategy, or all those of a distribution, keep the contract."""
    from adaptkit.errors import PluginError
    from adaptkit.registry import load_registry

    registry = load_registry()
    found = [_made(strategy, options or (), registry) for strategy in _strategies(name, registry)]
    from adaptkit.testing import run_checks

    failed = []
    for strategy in found:
        outcomes = list(_counted(strategy.name, run_checks(strategy)))
        _print_outcomes(strategy, outcomes)
        if any(not outcome.good for outcome in outcomes):
            failed.append(strategy.name)
    if failed:
        entry = registry.strategies[failed[0]]
        raise PluginError(
            f"{', '.join(failed)} of {entry.distribution} {entry.version} does not keep the contract of strategies",
            fix="repair what FAILED above; docs/contract.md has the contract",
        )


def _strategies(name: str, registry: Registry) -> list[type[Strategy[Any]]]:
    """Returns the strategies of a name or of a distribution.

    Raises:
        PluginError: The distribution has a fault, or brings no strategy.
        RecipeError: Nothing has this name.
    """
    from adaptkit.errors import PluginError, Problem

    broken = [failure for failure in registry.failures if failure.distribution == name]
    if broken:
        raise PluginError(
            [
                Problem(
                    f"plugin {one.distribution} {one.version} is left out: {one.reason}", one.entry_point, fix=one.fix
                )
                for one in broken
            ]
        )
    brought = [entry.value for _, entry in sorted(registry.strategies.items()) if entry.distribution == name]
    if not brought and name in {info.distribution for info in registry.plugins}:
        raise PluginError(f"the distribution {name!r} brings no strategy, and only strategies are checked")
    return brought or [registry.strategy(name)]


def _made(strategy: type[Strategy[Any]], options: Sequence[str], registry: Registry) -> Strategy[Any]:
    """Returns a strategy with options.

    Raises:
        RecipeError: It does not have them.
    """
    import yaml

    from adaptkit.errors import RecipeError
    from adaptkit.recipe import parse_recipe

    values = {"name": strategy.name}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"{text!r} is no KEY=VALUE", fix="write an option of the strategy, as num_layers=1")
        values[key.removeprefix("strategy.")] = yaml.safe_load(value)
    task = next(iter(sorted(strategy.capabilities.tasks or registry.tasks)))
    recipe = {"model": "tiny", "task": task, "data": {"train": "rows.jsonl"}, "strategy": values, "output": "run"}
    return strategy(parse_recipe(recipe, resolver=registry).strategy)


def _counted(name: str, outcomes: Iterable[Outcome]) -> Iterable[Outcome]:
    """Passes outcomes on, and tells a person at a terminal how far it is."""
    shown = sys.stderr.isatty()
    for number, outcome in enumerate(outcomes, 1):
        if shown:
            print(f"\r{name}: {number} checks", end="", file=sys.stderr, flush=True)
        yield outcome
    if shown:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _print_outcomes(strategy: Strategy[Any], outcomes: Sequence[Outcome]) -> None:
    """Prints a row for each check with a column for each base, then the reasons."""
    bases = list(dict.fromkeys(outcome.base for outcome in outcomes if outcome.base))
    rows: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(outcome.check, []).append(outcome)
    marks = [(name, *_marks(one, bases)) for name, one in rows.items()]
    print_table((strategy.name.upper(), *(base.upper() for base in bases)), marks)
    print()
    for line in _reasons(outcomes):
        print(line)
    counts = Counter(outcome.state for outcome in outcomes)
    seconds = sum(outcome.seconds for outcome in outcomes)
    print(f"{strategy.name}: {', '.join(f'{n} {state}' for state, n in counts.items())}, in {seconds:.0f} s\n")


def _reasons(outcomes: Sequence[Outcome]) -> Iterable[str]:
    """Yields what is wrong or known to be, each reason once with the checks that it concerns."""
    told: dict[tuple[str, str], dict[str, list[str]]] = {}
    for outcome in outcomes:
        if outcome.state not in ("passed", "not applicable"):
            where = told.setdefault((outcome.state, outcome.reason), {}).setdefault(outcome.check, [])
            where += [outcome.base] if outcome.base else []
    summaries = {outcome.check: outcome.summary for outcome in outcomes}
    for (state, reason), checks in told.items():
        name, bases = next(iter(checks.items()))
        place = f"{name}{' on ' if bases else ''}{', '.join(bases)}"
        more = f" and {len(checks) - 1} more checks" if len(checks) > 1 else f": {summaries[name]}"
        yield f"{state}: {reason}\n  in {place}{more}"


def _marks(outcomes: Sequence[Outcome], bases: Sequence[str]) -> list[str]:
    """Returns what came of a check on each base; of one that needs no base, in the first column."""
    if not outcomes[0].base:
        return [MARKS[outcomes[0].state], *[""] * (len(bases) - 1)]
    by_base = {outcome.base: MARKS[outcome.state] for outcome in outcomes}
    return [by_base.get(base, "") for base in bases]
