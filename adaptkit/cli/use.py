"""Commands that use a finished run: evaluate, predict."""

from __future__ import annotations

import json
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from adaptkit.errors import RecipeError

if TYPE_CHECKING:
    from adaptkit.artifact.run import Run

RunPath = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
BASE_HELP = "Ask the base alone, as it was before the training."
DATA_HELP = "A data file (default: the recipe's test split, else its evaluation split)."


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands."""
    app.command("evaluate")(evaluate)
    app.command("predict")(predict)


def evaluate(
    run: RunPath,
    data: Annotated[str | None, typer.Option("--data", metavar="FILE", help=DATA_HELP)] = None,
    base: Annotated[bool, typer.Option("--base", help=BASE_HELP)] = False,
) -> None:
    """Measure a finished run on held-out rows."""
    finished = _load(run, base=base)
    figures = finished.evaluate(data)
    measured = finished.recipe.data
    source = data or measured.named(measured.held_out or "evaluation")
    print(f"{source}: " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))


def predict(
    run: RunPath,
    text: Annotated[list[str] | None, typer.Option("--text", help="A text; may be given several times.")] = None,
    file: Annotated[str | None, typer.Option("--file", metavar="FILE", help="A data file; it needs no labels.")] = None,
    base: Annotated[bool, typer.Option("--base", help=BASE_HELP)] = False,
) -> None:
    """Ask a finished run; prints one JSON object a text."""
    if bool(text) == (file is not None):
        raise RecipeError("predict needs either --text or --file", fix=f'adaptkit predict {quote(run)} --text "…"')
    finished = _load(run, base=base)
    predictions = finished.predict(text) if text else finished.predict_file(str(file))
    for prediction in predictions:
        print(json.dumps(prediction, ensure_ascii=False))


def _load(run: str, *, base: bool) -> Run:
    from adaptkit.artifact.run import load

    finished = load(run)
    return finished.unadapted() if base else finished
