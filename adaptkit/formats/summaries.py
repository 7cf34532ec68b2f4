"""Texts and their summaries, as sequence-to-sequence rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from adaptkit.format import Format


class Summarization(Format):
    """A document and its summary; or an article and its highlights."""

    name = "summarization"
    gives = ("source", "target")
    roles = ("document",)
    label_roles = ("summary",)
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "document": ("article", "dialogue"),
        "summary": ("highlights", "abstract"),
    }

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns ``source`` and, of a labelled row, ``target``; the task checks the texts."""
        names = {"document": "source", "summary": "target"}
        return {names[role]: value for role, value in values.items()}
