"""Contracts, records and hooks as markdown, from their signatures and docstrings. Used by ``docs/generate.py``."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

SECTION = re.compile(r"^(Args|Returns|Raises|Attributes):\n", re.MULTILINE)
ITEM = re.compile(r"^ {4}(\w+): ", re.MULTILINE)
WIDTH = 100
SHORT = 40


def methods_of(contract: type) -> list[str]:
    """Returns the names of the public methods that a class itself defines, in their order."""
    return [name for name, member in vars(contract).items() if inspect.isfunction(member) and not name.startswith("_")]


def method_sections(contract: type) -> str:
    """Returns one section a method: its signature, its docstring, and what its default does."""
    return "\n\n".join(
        _section(getattr(contract, name), _default(getattr(contract, name))) for name in methods_of(contract)
    )


def hook_sections(specification: type) -> str:
    """Returns what holds for every hook of a class, and one section a hook, which is a function without ``self``."""
    hooks = [_section(getattr(specification, name), "", skip="self") for name in methods_of(specification)]
    return "\n\n".join([_text(specification), *hooks])


def method_rows(contract: type) -> Iterable[tuple[str, str, str]]:
    """Yields name, first sentence and default of each method."""
    for name in methods_of(contract):
        method = getattr(contract, name)
        default = "" if getattr(contract, "_is_protocol", False) else _default(method)
        yield f"`{name}`", _joined(_text(method).partition("\n\n")[0]), default


def attribute_rows(cls: type) -> Iterable[tuple[str, str, str]]:
    """Yields name, default and meaning of each attribute that the docstring of a class lists."""
    for name, meaning in _items(cls, "Attributes"):
        yield f"`{name}`", _value(cls, name), meaning


def _section(method: Callable[..., Any], default: str, *, skip: str = "") -> str:
    parts = [f"### {method.__name__}", f"```python\n{_signature(method, skip)}\n```", _text(method)]
    notes = [f"- `{name}`: {meaning}" for name, meaning in _items(method, "Args")]
    if returns := _sections(method).get("Returns"):
        notes.append(f"- Returns: {_joined(returns)}")
    notes += [f"- Raises `{name}`: {meaning}" for name, meaning in _items(method, "Raises")]
    return "\n\n".join(part for part in (*parts, "\n".join(notes), default) if part)


def _signature(method: Callable[..., Any], skip: str) -> str:
    signature = inspect.signature(method)
    kept = [parameter for name, parameter in signature.parameters.items() if name != skip]
    signature = signature.replace(parameters=kept)
    line = f"def {method.__name__}{signature}: ...".replace("'", "")
    if len(line) <= WIDTH:
        return line
    parameters = "".join(f"    {parameter},\n" for parameter in kept)
    return f"def {method.__name__}(\n{parameters}) -> {signature.return_annotation}: ...".replace("'", "")


def _default(method: Callable[..., Any]) -> str:
    """Returns what a method does that nobody overrides, where its code shows that in a word."""
    if getattr(method, "__isabstractmethod__", False):
        return "No default: it must be written."
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(method))).body
    assert isinstance(function, ast.FunctionDef)
    body = function.body[1:]
    if not body:
        return "By default it does nothing."
    match body[0]:
        case ast.Raise():
            return "By default it refuses."
        case ast.Return(value=ast.expr() as value) if len(ast.unparse(value)) <= SHORT:
            return f"By default it returns `{ast.unparse(value)}`."
    return ""


def _value(cls: type, name: str) -> str:
    """Returns the default of an attribute as code, or nothing where it has none."""
    if is_dataclass(cls):
        value = next((field.default for field in fields(cls) if field.name == name), MISSING)
    else:
        value = inspect.getattr_static(cls, name, MISSING)
    return "" if value is MISSING else f"`{_code(value)}`"


def _code(value: object) -> str:
    """Returns a value as code that is the same every time, without what is a default in it."""
    if isinstance(value, frozenset):
        return ", ".join(sorted(value))
    if isinstance(value, type):
        return value.__name__
    if is_dataclass(value):
        told = {field.name: getattr(value, field.name) for field in fields(value)}
        defaults = {field.name: field.default for field in fields(value)}
        changed = [f"{name}={_code(own)}" for name, own in told.items() if own != defaults[name]]
        return f"{type(value).__name__}({', '.join(changed)})"
    return repr(value)


def _items(documented: Any, section: str) -> Iterable[tuple[str, str]]:
    """Yields names and meanings from a section of a docstring."""
    parts = ITEM.split(_sections(documented).get(section, ""))
    for name, meaning in zip(parts[1::2], parts[2::2], strict=True):
        yield name, _joined(meaning)


def _text(documented: Any) -> str:
    """Returns a docstring up to its first section, as markdown, a line a paragraph."""
    text = SECTION.split(inspect.getdoc(documented) or "")[0].strip()
    return "\n\n".join(_joined(paragraph) for paragraph in text.split("\n\n"))


def _sections(documented: Any) -> dict[str, str]:
    parts = SECTION.split(inspect.getdoc(documented) or "")
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _joined(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")
