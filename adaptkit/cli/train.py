"""Commands that train: run (alias train)."""

from __future__ import annotations

from typing import Annotated

import typer

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, as in: strategy=lora training.epochs=1"),
]


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command("run")(run)
    app.command("train", hidden=True)(run)


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
    console.print(f"done in {duration(finished.results['seconds'])}: {figures or 'nothing was evaluated'}")
    console.print(f"saved in {finished.directory}")
    console.print(f'ask it:  adaptkit predict {finished.directory} --text "…"')
