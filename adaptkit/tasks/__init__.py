"""The built-in tasks, registered like anyone's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from adaptkit.task import Task


@hookimpl
def adaptkit_register_tasks(register: Callable[[type[Task[Any]]], None]) -> None:
    """Offers the tasks of this package."""
    from adaptkit.tasks.text_classification import TextClassification

    register(TextClassification)
