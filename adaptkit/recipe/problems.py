"""Pydantic's complaints as problems that a person can act on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from adaptkit.errors import Problem, did_you_mean
from adaptkit.recipe.describe import Description
from adaptkit.recipe.document import Document, KeyPath

_SHOWN_CHARACTERS = 60
_YAML_WORDS = {"None": "null", "True": "true", "False": "false"}
_WRONG_TYPE = re.compile(r"_type$|_parsing|_from_float$|^literal_error$|^enum$")
_SUBJECT = re.compile(r"^\w+ should (be a valid|be an instance of|be|have|match)\b")


def recipe_problems(errors: Iterable[ErrorDetails], model: type[BaseModel], document: Document) -> list[Problem]:
    """Returns one problem for every place that pydantic complained about.

    Args:
        errors: Of the validation.
        model: That was validated against.
        document: What was validated, for values and places.
    """
    by_place: dict[tuple[KeyPath, bool], list[ErrorDetails]] = {}
    for error in errors:
        path = _real_path(error["loc"], document.values)
        is_missing = error["type"] == "missing"
        by_place.setdefault(((*path, error["loc"][-1]) if is_missing else path, is_missing), []).append(error)
    explain = _Explainer(Description(model), document)
    paths = [path for path, _ in by_place]
    return [explain(path, found) for (path, _), found in by_place.items() if not _is_seen_deeper(path, found, paths)]


class _Explainer:
    def __init__(self, description: Description, document: Document) -> None:
        self.description = description
        self.document = document

    def __call__(self, path: KeyPath, errors: Sequence[ErrorDetails]) -> Problem:
        if errors[0]["type"] == "missing":
            return self._missing(path)
        if errors[0]["type"] == "extra_forbidden":
            return self._unknown(path)
        return self._wrong(path, errors)

    def _missing(self, path: KeyPath) -> Problem:
        where = self.document.where(path[:-1])
        fix = f"add it to {dotted(path[:-1])}" if path[:-1] else f"add `{path[-1]}:` to the recipe"
        return Problem(f"{dotted(path)} is missing", where, self._allowed(path), fix)

    def _unknown(self, path: KeyPath) -> Problem:
        section, key = path[:-1], str(path[-1])
        keys = self.description.keys(section)
        return Problem(
            f"unknown key {key!r} in {dotted(section) or 'the recipe'}",
            self.document.where(path),
            ", ".join(keys) or None,
            self._elsewhere(key) or did_you_mean(key, keys) or f"remove {key!r}",
        )

    def _elsewhere(self, key: str) -> str | None:
        places = [
            f"{section}.{key}" for section in self.description.keys(()) if key in self.description.keys((section,))
        ]
        places += [key] if key in self.description.keys(()) else []
        return f"{places[0]} is where this key lives" if len(places) == 1 else None

    def _wrong(self, path: KeyPath, errors: Sequence[ErrorDetails]) -> Problem:
        value = _value_at(path, self.document.values)
        name = dotted(path) or "the recipe"
        words = self.description.words(path)
        if words and (len(errors) > 1 or _WRONG_TYPE.search(errors[0]["type"])):
            found = f"{name} must be {words}, found {shortened(value)}"
        else:
            found = f"{name} {_requirement(errors[0])}, found {shortened(value)}"
        return Problem(found, self.document.where(path), self._allowed(path), _repair(value, words))

    def _allowed(self, path: KeyPath) -> str | None:
        parts = (self.description.words(path), self.description.purpose(path))
        return "\n".join(part for part in parts if part) or None


def _is_seen_deeper(path: KeyPath, errors: Sequence[ErrorDetails], paths: Iterable[KeyPath]) -> bool:
    """Whether a value fits a branch of a union but for something inside it; then the other branches say nothing."""
    is_value = errors[0]["type"] not in ("missing", "extra_forbidden")
    return is_value and any(len(other) > len(path) and other[: len(path)] == path for other in paths)


def dotted(path: KeyPath) -> str:
    """Returns ``section.key`` or ``section.list[0]``."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def shortened(value: Any) -> str:
    """Returns a value much as a recipe would write it, cut when it is long."""
    text = _YAML_WORDS.get(repr(value), repr(value))
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def _requirement(error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    plain = _SUBJECT.sub(lambda match: "must " + match[1].replace("be a valid", "be a"), message)
    return plain if plain.startswith("must") else f"is not accepted: {plain}"


def _repair(value: Any, words: str | None) -> str | None:
    if words is None:
        return None
    if isinstance(value, str):
        return did_you_mean(value, re.findall(r"'([^']*)'", words))
    alternatives = words.split(" or ")
    is_text_wanted = "text" in alternatives and not any("number" in one for one in alternatives)
    return "put it in quotes" if is_text_wanted and isinstance(value, bool | int | float) else None


def _real_path(location: Iterable[str | int], values: Any) -> KeyPath:
    """Returns the part of pydantic's location that the recipe has; the rest names branches of a union."""
    path: list[str | int] = []
    for key in location:
        if _has(values, key):
            path.append(key)
            values = values[key]
    return tuple(path)


def _value_at(path: KeyPath, values: Any) -> Any:
    for key in path:
        values = values[key]
    return values


def _has(values: Any, key: str | int) -> bool:
    if isinstance(values, Mapping):
        return key in values
    return isinstance(values, Sequence) and not isinstance(values, str) and isinstance(key, int) and key < len(values)
