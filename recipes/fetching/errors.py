"""The one error that a person sees."""

from __future__ import annotations


class FetchError(Exception):
    """An asset cannot be had; the message says what was found, where, and what to do."""

    def __init__(self, found: str, where: object, fix: str) -> None:
        indent = "\n" + " " * 11
        lines = (found, f"where:   {where}", f"fix:     {fix}")
        super().__init__("\n  ".join(line.replace("\n", indent) for line in lines))
