"""Broken on purpose: a hook that does not exist."""

from adaptkit import hookimpl


@hookimpl
def adaptkit_register_strategys(register):
    """Would never be called."""
