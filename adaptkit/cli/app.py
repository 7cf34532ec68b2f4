"""The command line as a whole: which commands there are, and what a person sees when one fails."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from adaptkit.cli import author, check, doctor, inspect, plan, train, use
from adaptkit.cli.quiet import quiet_libraries
from adaptkit.errors import AdaptkitError, Problem

# A full disk, a folder of somebody else: nothing that a change of adaptkit would help against.
OF_THE_MACHINE = {errno.EACCES, errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.EPERM, errno.EROFS}

app = typer.Typer(
    name="adaptkit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for module in (train, plan, use, inspect, author, check, doctor):
    module.add_commands(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from adaptkit.plugins import DISTRIBUTION
        from adaptkit.reporting.environment import installed_version

        print(f"adaptkit {installed_version(DISTRIBUTION) or 'not installed'} (distribution {DISTRIBUTION})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and the warnings of other libraries; anywhere on the line.")
    ] = False,
) -> None:
    """Adapt pretrained transformers by a strategy chosen by name."""


def main() -> None:
    """Runs the command line; exits with the code of the error, if there is one.

    0 done, 2 bad recipe or arguments, 3 bad data, 4 plugin, 5 does not fit memory, 6 checkpoint,
    7 interrupted but saved, 130 interrupted, 1 anything else.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    if not debug:
        quiet_libraries()
    try:
        app(arguments)
    except AdaptkitError as error:
        _fail(error, error.problems, error.exit_code, debug=debug)
    except Exception as error:
        _fail(error, [_unforeseen(error)], 1, debug=debug)


def _unforeseen(error: Exception) -> Problem:
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        fix = "make room or give access, then start again; a run that has begun goes on with --resume"
        return Problem(f"the system refuses: {error.strerror}", where=error.filename, fix=fix)
    found = f"unexpected {type(error).__name__}: {error}"
    return Problem(
        found, fix="this is a fault of adaptkit or of a plugin: report what the same command prints with --debug"
    )


def _fail(error: Exception, problems: Sequence[Problem], code: int, *, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    for index, problem in enumerate(problems):
        typer.secho("also: " if index else "error:", fg="red", bold=True, nl=False, err=True)
        typer.echo(f" {problem}", err=True)
    sys.exit(code)
