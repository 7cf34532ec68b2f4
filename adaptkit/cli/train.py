"""Commands that train, or show what would train: run (alias train), preview, compare."""

from __future__ import annotations

from shlex import quote
from typing import Annotated

import typer

from adaptkit.errors import RecipeError

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, as in: strategy=lora training.epochs=1"),
]


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command("run")(run)
    app.command("train", hidden=True)(run)
    app.command("preview")(preview)
    app.command("compare")(compare)


def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False,
    new: Annotated[bool, typer.Option("--new", help="If the output folder exists, use the next free name.")] = False,
) -> None:
    """Run a recipe: check, train, evaluate, save."""
    from rich.console import Console

    from adaptkit.reporting.progress import duration
    from adaptkit.runner import run as run_recipe

    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    finished = run_recipe(recipe, overrides or (), resume=resume, new=new, console=console)
    figures = "  ".join(f"{name} {value:.4f}" for name, value in finished.metrics.items())
    console.print(f"done in {duration(finished.seconds)}: {figures or 'nothing was evaluated'}")
    console.print(f"saved in {finished.directory}")
    console.print(f'ask it:  adaptkit predict {quote(str(finished.directory))} --text "…"')


def preview(
    recipe: RecipePath,
    overrides: Overrides = None,
    examples: Annotated[int, typer.Option("--examples", min=0, help="How many rows are shown.")] = 3,
) -> None:
    """Show the rows as the model will read them."""
    from adaptkit.runner import preview as preview_recipe

    for line in preview_recipe(recipe, overrides or (), examples=examples):
        print(line)


def compare(
    recipe: RecipePath,
    overrides: Overrides = None,
    strategies: Annotated[str, typer.Option("--strategies", help="Names, separated by commas.")] = "",
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds of the training, separated by commas.")] = "0",
) -> None:
    """Run a recipe under several strategies and seeds, and print them side by side."""
    from adaptkit.cli.tables import print_table
    from adaptkit.comparison import compare as compare_strategies

    comparison = compare_strategies(
        recipe, _names(strategies), seeds=[_seed(seed) for seed in _names(seeds)], overrides=overrides or ()
    )
    header, *rows = comparison.rows()
    print_table([name.upper() for name in header], rows)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise RecipeError(f"{text!r} is no seed", where="--seeds", allowed="whole numbers, separated by commas")
    return int(text)
