"""Broken on purpose: an observer that raises."""

from adaptkit import hookimpl


@hookimpl
def adaptkit_step_end(record):
    raise OSError(f"disk full at step {record.step}")


@hookimpl
def adaptkit_train_error(error):
    raise OSError("disk still full")
