"""A recipe's text as plain Python values, and where in the text each of them stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from adaptkit.errors import Problem, RecipeError, did_you_mean
from adaptkit.recipe.yaml_text import compose, read_scalar

KeyPath: TypeAlias = tuple[str | int, ...]
MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class Document:
    """Values and their places.

    Attributes:
        values: What was written: dicts with text keys, lists, and scalars.
        positions: Key path to ``file:line:column`` (or to the override that set it); ``()`` is the whole.
    """

    values: dict[str, Any]
    positions: Mapping[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str | None:
        """Returns the place of a key, or of the nearest section around it."""
        ends = range(len(path), -1, -1)
        return next((self.positions[path[:end]] for end in ends if path[:end] in self.positions), None)


def read_document(path: str | Path) -> Document:
    """Reads a YAML file.

    Raises:
        RecipeError: There is no such file, or it does not hold a mapping in plain YAML.
    """
    value, positions = read_yaml(_read_text(Path(path)), str(path))
    if not isinstance(value, dict):
        found = "the recipe is empty" if value is None else "a recipe is a list of `key: value` lines, and this is not"
        raise RecipeError(found, where=f"{path}:1:1", fix="`adaptkit init` writes a recipe to start from")
    return Document(value, positions)


def read_yaml(text: str, source: str) -> tuple[Any, dict[KeyPath, str]]:
    """Returns the value of a YAML text, None for an empty one, and ``source:line:column`` by key path.

    Raises:
        RecipeError: Broken YAML, or, all at once: duplicate keys, odd keys, tags that are not plain YAML.
    """
    try:
        node = compose(text)
    except yaml.YAMLError as error:
        raise RecipeError([_syntax_problem(error, text, source)]) from None
    builder = _Builder(source)
    value = None if node is None else builder.value(node, ())
    if builder.problems:
        raise RecipeError(builder.problems)
    return value, builder.positions


class _Builder:
    """Turns nodes into values, noting positions and problems on the way."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.positions: dict[KeyPath, str] = {}
        self.problems: list[Problem] = []

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """Returns the value of a node that stands at a key path."""
        self.positions.setdefault(path, self._where(node))
        if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key is None:
                continue
            if key in values:
                first = self.positions[(*path, key)]
                self._problem(f"the key {key!r} is there twice; first at {first}", key_node, "keep one of them")
                continue
            self.positions[(*path, key)] = self._where(key_node)
            values[key] = self.value(value_node, (*path, key))
        return values

    def _key(self, node: yaml.Node) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._problem("a key must be plain text", node, "quote it if it begins with [ or {")
            return None
        self._scalar(node)
        return str(node.value)

    def _scalar(self, node: yaml.Node) -> Any:
        try:
            if isinstance(node, yaml.ScalarNode):
                return read_scalar(node)
            self._problem(f"the tag {node.tag} does not fit here", node, "remove the tag")
        except ValueError as error:
            self._problem(str(error), node, "put text in quotes, and use no tags")
        return None

    def _problem(self, found: str, node: yaml.Node, fix: str) -> None:
        self.problems.append(Problem(found, self._where(node), fix=fix))

    def _where(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _syntax_problem(error: yaml.YAMLError, text: str, source: str) -> Problem:
    offset, reason = 0, str(error)
    if isinstance(error, yaml.reader.ReaderError):
        offset, reason = error.position, f"the character U+{ord(text[error.position]):04X} is not allowed"
    elif isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        offset = mark.index if mark else 0
        reason = ", ".join(part for part in (error.context, error.problem) if part)
    where = f"{source}:{_line_and_column(text[:offset])}"
    if text[offset : offset + 1] == "\t":
        return Problem("a tab is used as indentation", where, fix="indent with spaces")
    return Problem(f"this is not YAML that a recipe can use: {reason}", where, fix="put text with : # * & in quotes")


def _line_and_column(before: str) -> str:
    return f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise RecipeError(_unreadable(path, error), where=str(path), fix=_near_file(path)) from None
    if len(content) > MAX_BYTES:
        raise RecipeError("this file is too large for a recipe", where=str(path), allowed=f"{MAX_BYTES:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"{path}:{_line_and_column(content[: error.start].decode('latin-1'))}"
        raise RecipeError("this file is not UTF-8 text", where=where, fix="save it as UTF-8") from None


def _unreadable(path: Path, error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such recipe file"
    if isinstance(error, IsADirectoryError):
        return "this is a folder, not a recipe file"
    return f"the recipe cannot be read: {getattr(error, 'strerror', None) or error}"


def _near_file(path: Path) -> str:
    try:
        near = did_you_mean(path.name, (near.name for near in path.parent.iterdir() if near.is_file()))
    except (OSError, ValueError):
        near = None
    return near or f"check the path; it is read from {str(Path.cwd())!r}"
