"""The command line as a whole: which commands there are, and what a person sees when one fails."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from adaptkit.cli import inspect, train, use
from adaptkit.errors import AdaptkitError

app = typer.Typer(
    name="adaptkit",
    help="Adapt pretrained transformers by a strategy chosen by name.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (train, use, inspect):
    module.add_commands(app)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Adapt pretrained transformers by a strategy chosen by name."""


def main() -> None:
    """Runs the command line; exits with the code of the error, if there is one.

    0 done, 2 bad recipe or arguments, 3 bad data, 4 plugin, 5 does not fit memory, 6 checkpoint,
    7 interrupted but saved, 130 interrupted, 1 anything else.
    """
    try:
        app()
    except AdaptkitError as error:
        _fail(error, str(error), error.exit_code)
    except KeyboardInterrupt as error:
        _fail(error, "interrupted", 130)
    except Exception as error:
        _fail(
            error,
            f"unexpected {type(error).__name__}: {error}\n  fix:     this is a fault of adaptkit or of a plugin; "
            "run `adaptkit --debug …` and report what it prints",
            1,
        )


def _fail(error: BaseException, message: str, code: int) -> None:
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
