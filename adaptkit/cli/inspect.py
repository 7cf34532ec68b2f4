"""Commands that only look, and import no torch: validate, schema, strategies, tasks, plugins."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from adaptkit.cli.train import Overrides, Recipe
from adaptkit.recipe import Options


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (validate, schema, strategies, tasks, optimizers, plugins):
        app.command(command.__name__)(command)


def validate(
    recipe: Recipe,
    overrides: Overrides = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Print the recipe with every default.")] = False,
) -> None:
    """Check a recipe, its data files included, without loading a model."""
    from adaptkit.recipe import dump_recipe
    from adaptkit.registry import load_registry
    from adaptkit.runner import check, choose, resolve

    registry = load_registry()
    parsed = resolve(recipe, overrides or (), registry)
    strategy, task = choose(parsed, registry)
    splits = check(parsed, strategy, task)
    if resolved:
        print(dump_recipe(parsed), end="")
        return
    rows = {"train": splits.train, "evaluation": splits.evaluation, "test": splits.test}
    counts = ", ".join(f"{len(split):,} {name}" for name, split in rows.items() if split)
    print(f"{recipe}: {task.name} by {strategy.name}; {counts} rows; all good")
    for note in task.notes:
        print(f"note: {note}")


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from adaptkit.recipe import recipe_json_schema
    from adaptkit.registry import load_registry

    registry = load_registry()
    strategies = {name: entry.value.Options for name, entry in registry.strategies.items()}
    tasks = {name: entry.value.Options for name, entry in registry.tasks.items()}
    print(json.dumps(recipe_json_schema(strategies, tasks), indent=2))


def strategies(name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None) -> None:
    """List the strategies, or explain one with its options."""
    from adaptkit.registry import load_registry

    registry = load_registry()
    if name is None:
        _list({key: entry for key, entry in sorted(registry.strategies.items())})
        return
    strategy = registry.strategy(name)
    origin = registry.strategies[name]
    print(f"{name}  ({origin.distribution} {origin.version})\n{_first_line(strategy)}\n")
    _print_options(strategy.Options)
    print("\ncapabilities:")
    for capability, value in vars(strategy.capabilities).items():
        shown = ", ".join(sorted(value)) if isinstance(value, frozenset) else {None: "all"}.get(value, value)
        print(f"  {capability:<24}{str(shown).lower()}")


def tasks(name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None) -> None:
    """List the tasks, or explain one with its options."""
    from adaptkit.registry import load_registry

    registry = load_registry()
    if name is None:
        _list({key: entry for key, entry in sorted(registry.tasks.items())})
        return
    task = registry.task(name)
    print(f"{name}\n{_first_line(task)}\ncolumns: {', '.join(task.roles)}\n")
    _print_options(task.Options)


def optimizers() -> None:
    """List the optimizers."""
    from adaptkit.registry import load_registry

    _list({key: entry for key, entry in sorted(load_registry().optimizers.items())})


def plugins() -> None:
    """List the plugins, with what each brings, and those that did not load with the reason and the fix."""
    from adaptkit.errors import Problem
    from adaptkit.registry import load_registry

    registry = load_registry()
    for plugin in registry.plugins:
        print(plugin)
    for failure in registry.failures:
        title = f"{failure.distribution} {failure.version} did not load: {failure.reason}"
        print(f"\n{Problem(title, where=failure.entry_point, fix=failure.fix)}")


def _list(entries: dict[str, Any]) -> None:
    for name, entry in entries.items():
        print(f"{name:<20}{_first_line(entry.value):<70}{entry.distribution}")


def _print_options(options: type[Options]) -> None:
    print("options:")
    for name, field in options.model_fields.items():
        if name != "name":
            default = "required" if field.is_required() else f"default {field.default!r}"
            print(f"  {name:<20}{field.description or ''} ({default})")
    if set(options.model_fields) == {"name"}:
        print("  none")


def _first_line(value: Any) -> str:
    return (value.__doc__ or "").strip().partition("\n")[0]
