"""The contract of a dataset format: how the columns of a file become the roles of a task.

A task reads rows by role (``messages``, say). A format knows other columns that say the same thing
(``instruction``, ``input``, ``output``) and turns such a row into the task's.

Importing this module imports nothing heavy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = ["Format"]


class Format(ABC):
    """One way in which files write rows. Subclass it, set ``name``, ``gives`` and the roles, write `convert`.

    A format is recognised by its columns: all of `roles` and `label_roles` are there. It is offered to the tasks
    that read what it gives.

    Attributes:
        name: What a recipe calls it (``data: {format: alpaca}``).
        gives: The roles of a task that it makes rows for: all that a labelled row of the task needs, perhaps more.
        roles: Columns that every row needs.
        label_roles: Columns that a labelled row needs besides; rows to predict need not have them.
        optional_roles: Columns that a row may have.
        aliases: Other names that files have for a column, by role.
    """

    name: ClassVar[str]
    gives: ClassVar[tuple[str, ...]]
    roles: ClassVar[tuple[str, ...]]
    label_roles: ClassVar[tuple[str, ...]] = ()
    optional_roles: ClassVar[tuple[str, ...]] = ()
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @abstractmethod
    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values of one row by the roles of the task.

        Args:
            values: By the roles of this format; those of `label_roles` are missing in rows to predict.

        Raises:
            DataError: The row cannot be read. The place of the row is filled in by the caller.
        """
