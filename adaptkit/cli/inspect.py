"""Commands that only look, and import no torch: validate, schema, strategies, tasks, formats, optimizers, plugins."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptkit.cli.tables import first_line, print_table
from adaptkit.cli.train import Overrides, RecipePath

if TYPE_CHECKING:
    from adaptkit.plugins import PluginInfo
    from adaptkit.recipe import Options, Recipe
    from adaptkit.registry import Entry, Registry
    from adaptkit.task import Splits, Task


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (validate, schema, strategies, tasks, formats, metrics, optimizers, trackers, plugins):
        app.command(command.__name__)(command)


def validate(
    recipe: RecipePath,
    overrides: Overrides = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Print the recipe with every default.")] = False,
) -> None:
    """Check a recipe and its data without loading a model."""
    from adaptkit.recipe import StagedRecipe, dump_recipe
    from adaptkit.registry import load_registry
    from adaptkit.runner import check, choose, resolve

    registry = load_registry()
    parsed = resolve(recipe, overrides or (), registry)
    strategy, task = choose(parsed, registry)
    splits = check(parsed, strategy, task, registry)
    if resolved:
        print(dump_recipe(parsed), end="")
        return
    stages = parsed.stages if isinstance(parsed, StagedRecipe) else (parsed,)
    names = ", then ".join(stage.strategy.name for stage in stages)
    print(f"{recipe} is good: {names} on {stages[0].model.name} for {task.name}")
    _print_plan(stages, task, splits)
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


def strategies(name: Annotated[str | None, typer.Argument(metavar="NAME")] = None) -> None:
    """List the strategies, or explain one with its options."""
    from adaptkit.registry import load_registry

    registry = load_registry()
    if name is None:
        _print_entries("strategy", registry.strategies, registry)
        return
    strategy = registry.strategy(name)
    _print_title(name, registry.strategies[name])
    _print_options(strategy.Options)
    capabilities = {**vars(strategy.capabilities), "tasks": strategy.capabilities.tasks or "all"}
    print()
    print_table(("CAPABILITY", ""), ((key.replace("_", " "), _words(value)) for key, value in capabilities.items()))
    print(f"\nuse it: adaptkit run RECIPE strategy={name}")


def tasks(name: Annotated[str | None, typer.Argument(metavar="NAME")] = None) -> None:
    """List the tasks, or explain one with its columns and options."""
    from adaptkit.registry import load_registry

    registry = load_registry()
    if name is None:
        _print_entries("task", registry.tasks, registry)
        return
    task = registry.task(name)
    _print_title(name, registry.tasks[name])
    columns = {"every row": task.roles, "labelled rows": task.label_roles, "optional": task.optional_roles}
    print_table(("COLUMNS", ""), ((rows, ", ".join(roles)) for rows, roles in columns.items() if roles))
    print()
    _print_options(task.Options)
    print(f"\nmodels: {_words(task.capabilities.families)}")


def formats() -> None:
    """List the formats of rows and their columns."""
    from adaptkit.registry import load_registry

    registry = load_registry()
    rows = (
        (name, ", ".join((*entry.value.roles, *entry.value.label_roles)), ", ".join(entry.value.gives))
        for name, entry in sorted(registry.formats.items())
    )
    print_table(("FORMAT", "COLUMNS", "BECOME"), rows)


def metrics() -> None:
    """List the figures of generated texts."""
    from adaptkit.registry import load_registry

    registry = load_registry()
    _print_entries("metric", registry.metrics, registry)


def trackers() -> None:
    """List the trackers, which show a run's figures."""
    from adaptkit.registry import load_registry

    registry = load_registry()
    _print_entries("tracker", registry.trackers, registry)


def optimizers() -> None:
    """List the optimizers."""
    from adaptkit.registry import load_registry

    registry = load_registry()
    _print_entries("optimizer", registry.optimizers, registry)


def plugins() -> None:
    """List the plugins, what each brings and what is broken."""
    from adaptkit.errors import Problem
    from adaptkit.registry import load_registry

    registry = load_registry()
    rows = ((f"{info.distribution} {info.version}", info.entry_point, _brings(info)) for info in registry.plugins)
    print_table(("PLUGIN", "ENTRY POINT", "BRINGS"), rows)
    if registry.failures:
        print("\nleft out:")
    for failure in registry.failures:
        found = f"{failure.distribution} {failure.version}: {failure.reason}"
        print(f"\n{Problem(found, where=f'entry point {failure.entry_point}', fix=failure.fix)}")


def _print_plan(stages: Sequence[Recipe], task: Task[Any], splits: Splits) -> None:
    """Prints rows, steps and output of a recipe, or of its stages, which have the rows and the output in common."""
    rows = {"train": splits.train, "evaluation": splits.evaluation, "test": splits.test}
    print(f"  rows:    {', '.join(f'{len(split):,} {name}' for name, split in rows.items() if split)}")
    for number, stage in enumerate(stages, 1):
        steps = _steps(stage, task, splits)
        print(f"  steps:   {steps}" if len(stages) == 1 else f"  stage {number}: {stage.strategy.name}, steps: {steps}")
    output = stages[-1].output
    taken = "; there already: the run needs --new or --resume" if os.path.exists(output) else ""
    print(f"  output:  {output}{taken}")


def _steps(recipe: Recipe, task: Task[Any], splits: Splits) -> str:
    from adaptkit.training.batches import total_steps

    settings = recipe.training
    rate = "the strategy's" if settings.learning_rate is None else f"{settings.learning_rate:.1e}"
    features = 0 if settings.max_steps else task.feature_count(len(splits.train))
    steps = "known when the rows are tokenized:" if features is None else f"{total_steps(features, settings):,}"
    return f"{steps} of {settings.effective_batch} rows each, learning rate {rate}"


def _print_entries(kind: str, entries: Mapping[str, Entry[Any]], registry: Registry) -> None:
    rows = (
        (name, first_line(entry.value), f"{entry.distribution} {entry.version}")
        for name, entry in sorted(entries.items())
    )
    print_table((kind.upper(), "", "FROM"), rows)
    if broken := sorted({failure.distribution for failure in registry.failures}):
        print(f"\nnote: `adaptkit plugins` says what is wrong with {', '.join(broken)}")


def _print_title(name: str, entry: Entry[Any]) -> None:
    print(f"{name}  ({entry.distribution} {entry.version}, {entry.module})\n{first_line(entry.value)}\n")


def _print_options(options: type[Options]) -> None:
    from adaptkit.recipe.describe import Description

    allowed = Description(options)
    rows = [
        (
            name,
            "required" if field.is_required() else _words(field.get_default(call_default_factory=True)),
            allowed.words((name,)) or "",
            field.description or "",
        )
        for name, field in options.model_fields.items()
        if name != "name"
    ]
    if rows:
        print_table(("OPTION", "DEFAULT", "ALLOWED", ""), rows)
    else:
        print("It has no options.")


def _brings(info: PluginInfo) -> str:
    """Returns what a plugin offers by kind, and the events that it watches."""
    if info.disabled:
        from adaptkit.plugins import DISABLE_VARIABLE

        return f"disabled by {DISABLE_VARIABLE}"
    offers = [f"{_plural(kind)}: {', '.join(names)}" for kind, names in info.names.items()]
    events = [hook.removeprefix("adaptkit_") for hook in info.hooks if not hook.startswith("adaptkit_register_")]
    return "\n".join([*offers, f"watches: {', '.join(events)}"] if events else offers) or "nothing"


def _plural(kind: str) -> str:
    return "strategies" if kind == "strategy" else f"{kind}s"


def _words(value: object) -> str:
    """Returns a value as a recipe writes it; several ones in a fixed order."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, str) or not isinstance(value, Iterable):
        return str(value)
    return ", ".join(sorted(str(item) for item in value)) or "none"
