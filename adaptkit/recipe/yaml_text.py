"""The YAML of a recipe: the scalars of YAML 1.2's core schema, plain data only.

PyYAML follows YAML 1.1, where ``1e-3`` is text and ``no`` and ``on`` are booleans. Here ``1e-3`` is a number, and
only ``true`` and ``false`` are booleans. Aliases are refused, so that a small text cannot grow into a large value.

Source: YAML 1.2.2, section 10.3.2 (tag resolution of the core schema).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

MAX_DEPTH = 50
_TAG = "tag:yaml.org,2002:"
_CORE = (
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", tuple("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        tuple("-+.0123456789"),
    ),
)


class PlainLoader(yaml.SafeLoader):
    """Composes nodes with YAML 1.2's scalars; refuses aliases and very deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Composes one node and what is below it."""
        mark: Any = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "a recipe has no aliases (*name)", mark)
        if self.depth == MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, "this is nested too deeply", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class PlainDumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Writes line breaks and other invisible characters as escapes; plain style would fold or lose them."""
        return self.represent_scalar(_TAG + "str", data, style=None if data.isprintable() else '"')


PlainDumper.add_representer(str, PlainDumper.represent_str)
PlainLoader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _CORE:
    for _class in (PlainLoader, PlainDumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), list(_first))


def _read_bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _read_int(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


def _read_float(text: str) -> float:
    return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))


_READERS: dict[str, Callable[[str], Any]] = {
    _TAG + "null": lambda text: None,
    _TAG + "bool": _read_bool,
    _TAG + "int": _read_int,
    _TAG + "float": _read_float,
    _TAG + "str": str,
}


def read_scalar(node: yaml.ScalarNode) -> Any:
    """Returns the value of a scalar.

    Raises:
        ValueError: The tag is not one of plain YAML, the text does not fit the tag, or it is not valid Unicode.
    """
    if node.tag not in _READERS:
        raise ValueError(f"the tag {node.tag.replace(_TAG, '!!')} has no meaning in a recipe")
    try:
        node.value.encode()
        return _READERS[node.tag](node.value)
    except (KeyError, ValueError):
        raise ValueError(f"this is not a valid {node.tag.removeprefix(_TAG)}") from None


def compose(text: str) -> yaml.Node | None:
    """Returns the node of the one document in a text, or None when the text holds nothing.

    Raises:
        yaml.YAMLError: The text is not YAML, or not plain enough.
    """
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=PlainLoader)
    except (ValueError, OverflowError) as error:
        raise yaml.YAMLError(str(error)) from None
    return node


def dump(value: Any) -> str:
    """Returns YAML in block style, keys in their own order, that `compose` reads back to the same value."""
    text: str = yaml.dump(value, Dumper=PlainDumper, sort_keys=False, allow_unicode=True, width=120)
    return text
