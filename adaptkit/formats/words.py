"""Texts that are written word by word, as corpora with tags have them, read as running text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptkit.errors import DataError
from adaptkit.format import Format


class Words(Format):
    """The words of a sentence, joined by spaces; what they are tagged with is passed over."""

    name = "words"
    gives = ("text",)
    roles = ("tokens",)

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns ``text``.

        Raises:
            DataError: The words are no list of strings.
        """
        words = values["tokens"]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(
                f"the words are {words!r:.80}",
                allowed='a list of strings, such as ["fine", "film"]',
                fix="write them so",
            )
        return {"text": " ".join(words)}
