"""doctor: what this installation and this machine can do."""

from __future__ import annotations

import typer

from adaptkit.cli.tables import print_table
from adaptkit.errors import AdaptkitError


def add_commands(app: typer.Typer) -> None:
    """Adds this module's command."""
    app.command("doctor")(doctor)


def doctor() -> None:
    """Check the installation and show what the machine can do."""
    from adaptkit.reporting import environment

    problems = list(environment.problems())
    print_table(("INSTALLED", "VERSION", "NEEDED"), environment.versions())
    print()
    print_table(("MACHINE", ""), environment.machine())
    print()
    if problems:
        raise AdaptkitError(problems)
    print("all good")
