"""What the installed PEFT can do, read from its source files: importing PEFT takes seconds, this milliseconds.

Nothing is executed. A method's folder, ``peft/tuners/<method>``, names its config class where it registers it, and
that class (with the classes it inherits from) names fields, types, defaults and help texts.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Union

_PLAIN_TYPES = MappingProxyType({kind.__name__: kind for kind in (bool, int, float, str, list, dict)})
_UNREADABLE = object()
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


@dataclass(frozen=True)
class ConfigField:
    """One field of a config class.

    Attributes:
        name: Of the field.
        type: What it may hold; `Any` where that cannot be said without running PEFT.
        default: Its default.
        description: The first sentence of PEFT's help text.
    """

    name: str
    type: Any
    default: Any
    description: str


@cache
def peft_methods() -> tuple[str, ...]:
    """Returns the methods of the installed PEFT in PEFT's spelling, lower case: ``prompt_tuning``.

    Empty where PEFT is not installed.
    """
    folder = _peft_folder()
    if folder is None:
        return ()
    enum = _classes(folder / "utils" / "peft_types.py")["PeftType"]
    return tuple(value.lower() for value in _enum_values(enum))


@cache
def config_fields(method: str) -> dict[str, ConfigField]:
    """Returns the fields of a method's config class by name, those of its parents first.

    Args:
        method: In PEFT's spelling, one of `peft_methods`.
    """
    folder = _peft_folder()
    assert folder is not None, "there is no method without PEFT"
    package = folder / "tuners" / method
    return _class_fields(package / "config.py", _config_class(package / "__init__.py"))


def _peft_folder() -> Path | None:
    spec = importlib.util.find_spec("peft")
    return Path(spec.origin).parent if spec and spec.origin else None


def _config_class(path: Path) -> str:
    """Returns the name of the class that a method registers as its config."""
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "register_peft_method":
            return next(ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "config_cls")
    raise LookupError(f"{path} registers no method")


@cache
def _class_fields(path: Path, name: str) -> dict[str, ConfigField]:
    node = _classes(path).get(name)
    if node is None:  # a parent that is not PEFT's
        return {}
    fields: dict[str, ConfigField] = {}
    for base in node.bases:
        fields |= _class_fields(_source_of(path, ast.unparse(base)), ast.unparse(base))
    return fields | {field.name: field for field in _own_fields(path, node)}


def _own_fields(path: Path, node: ast.ClassDef) -> Iterator[ConfigField]:
    for statement in node.body:
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        arguments = _field_arguments(statement.value)
        default = _default(path, arguments)
        kind = Any if default is _UNREADABLE else _type(path, statement.annotation)
        if default is None and kind is not Any:
            kind = kind | None  # PEFT writes `int = None`
        default = None if default is _UNREADABLE else default
        yield ConfigField(statement.target.id, kind, default, _help(arguments.get("metadata")))


def _field_arguments(value: ast.expr | None) -> dict[str, ast.expr]:
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        return {keyword.arg: keyword.value for keyword in value.keywords if keyword.arg}
    return {} if value is None else {"default": value}


def _default(path: Path, arguments: dict[str, ast.expr]) -> Any:
    if "default_factory" in arguments:
        kind = _PLAIN_TYPES.get(ast.unparse(arguments["default_factory"]))
        return kind() if kind else _UNREADABLE
    if "default" not in arguments:
        return _UNREADABLE
    node = arguments["default"]
    try:
        return ast.literal_eval(node)
    except ValueError:
        pass
    if isinstance(node, ast.Attribute):  # a member of an enum
        return _enum_members(path, ast.unparse(node.value)).get(node.attr, _UNREADABLE)
    return _UNREADABLE


def _help(metadata: ast.expr | None) -> str:
    try:
        value = ast.literal_eval(metadata) if metadata else {}
    except ValueError:
        return ""
    text = " ".join(str(value.get("help", "")).split())
    return _SENTENCE_END.split(text, maxsplit=1)[0]


def _type(path: Path, node: ast.expr) -> Any:
    """Returns the type that an annotation stands for, `Any` where it is none of the plain ones."""
    match node:
        case ast.Constant(value=None):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union(path, [left, right])
        case ast.Name(id=name):
            return _PLAIN_TYPES.get(name) or _named_type(path, name)
        case ast.Subscript():
            return _generic_type(path, node)
    return Any


def _generic_type(path: Path, node: ast.Subscript) -> Any:
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    match ast.unparse(node.value).lower():
        case "optional":
            return _union(path, [*inner, ast.Constant(None)])
        case "union":
            return _union(path, inner)
        case "literal":
            return _literal([ast.literal_eval(value) for value in inner])
        case "list":
            return list[_type(path, inner[0])]  # type: ignore[misc]
        case "tuple":
            return tuple[tuple(_type(path, part) for part in inner)]  # type: ignore[misc]
        case "dict":
            return dict[_type(path, inner[0]), _type(path, inner[1])]  # type: ignore[misc]
    return Any


def _union(path: Path, nodes: list[ast.expr]) -> Any:
    """Returns a union; beside a fixed choice, ``str`` only says that the choice is written as text."""
    kinds = [_type(path, node) for node in nodes]
    if Any in kinds:
        return Any
    if any(getattr(kind, "__origin__", None) is Literal for kind in kinds):
        kinds = [kind for kind in kinds if kind is not str]
    return Union[tuple(kinds)]  # noqa: UP007


def _literal(values: list[Any]) -> Any:
    """Returns a choice; a value with a place for a number in it (``pissa_niter_[number of iters]``) makes it text."""
    return str if any("[" in str(value) for value in values) else Literal[tuple(values)]


def _named_type(path: Path, name: str) -> Any:
    """Returns the choice that an enum or an alias of the same file stands for."""
    if members := _enum_members(path, name):
        return Literal[tuple(members.values())]
    for node in _parse(path).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return _type(path, node.value)
    return Any


def _enum_members(path: Path, name: str) -> dict[str, str]:
    node = _classes(path).get(name)
    if node is None or not any("Enum" in ast.unparse(base) for base in node.bases):
        return {}
    return {target: value for target, value in _assignments(node) if isinstance(value, str)}


def _enum_values(node: ast.ClassDef) -> Iterator[str]:
    return (value for _, value in _assignments(node) if isinstance(value, str))


def _assignments(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            yield ast.unparse(statement.targets[0]), statement.value.value


def _source_of(path: Path, name: str) -> Path:
    """Returns the file of a class: this one, or the one that it is imported from within PEFT."""
    for node in _parse(path).body:
        imported = isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names)
        if imported and isinstance(node, ast.ImportFrom) and (node.module or "").startswith("peft."):
            folder = _peft_folder()
            assert folder is not None, "its files are being read"
            place = folder.joinpath(*(node.module or "").split(".")[1:])
            return place / "config.py" if place.is_dir() else place.with_suffix(".py")
    return path


def _classes(path: Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _parse(path).body if isinstance(node, ast.ClassDef)}


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
