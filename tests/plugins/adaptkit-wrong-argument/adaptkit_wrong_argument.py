"""Broken on purpose: an argument that the hook does not have."""

from adaptkit import hookimpl


@hookimpl
def adaptkit_step_end(run, recrod):
    """Would get no record."""
