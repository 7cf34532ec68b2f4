"""Keeps the screen for what adaptkit itself has to say."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import typer

# Read by the libraries when they are imported.
_QUIET = {
    "HF_HUB_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def quiet_libraries() -> None:
    """Silences the warnings of other libraries; those of adaptkit and its plugins become lines on standard error.

    To be called before any other library is imported. What a person has set (in the environment, or by
    ``python -W``) is kept.
    """
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module="adaptkit")
    # With a handler on the root, python does not print warnings of loggers that have none.
    _add_once(logging.getLogger(), logging.NullHandler())
    _add_once(logging.getLogger("adaptkit"), _WarningLines(logging.WARNING))


class _WarningLines(logging.Handler):
    """Prints one line per record, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"{record.levelname.lower()}: {record.getMessage()}", err=True)


def _add_once(logger: logging.Logger, handler: logging.Handler) -> None:
    if not any(type(other) is type(handler) for other in logger.handlers):
        logger.addHandler(handler)
