"""What a place in a recipe accepts, looked up in its JSON Schema and said in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from pydantic import BaseModel

from adaptkit.recipe.document import KeyPath
from adaptkit.recipe.json_schema import LenientJsonSchema
from adaptkit.recipe.schema import NamedOptions

Schema: TypeAlias = dict[str, Any]

_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
    "array": "a list",
    "object": "a section with keys",
}
_BOUNDS = {
    "exclusiveMinimum": "greater than",
    "minimum": "at least",
    "exclusiveMaximum": "less than",
    "maximum": "at most",
}


class Description:
    """Answers what a recipe accepts at a key path.

    Args:
        model: Of the recipe, with the options of the strategy and task that were chosen.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self._root: Schema = model.model_json_schema(schema_generator=LenientJsonSchema)
        self._short = {
            name
            for name, field in model.model_fields.items()
            if isinstance(field.annotation, type) and issubclass(field.annotation, NamedOptions)
        }

    def keys(self, path: KeyPath) -> list[str]:
        """Returns the keys of a section; none when a path is no section."""
        return [key for schema in self._variants(self._at(path)) for key in schema.get("properties", ())]

    def words(self, path: KeyPath) -> str | None:
        """Returns what is allowed, such as ``a number greater than 0``; None when nothing is known."""
        words = self._words(self._at(path))
        return f"a name, or {words}" if words and len(path) == 1 and path[0] in self._short else words

    def purpose(self, path: KeyPath) -> str | None:
        """Returns the description of a key, if it has one of its own."""
        return self._at(path).get("description")

    def _at(self, path: KeyPath) -> Schema:
        schema = self._root
        for key in path:
            inner = (self._step(variant, key) for variant in self._variants(schema))
            schema = next((found for found in inner if found), {})
        return schema

    def _step(self, schema: Schema, key: str | int) -> Schema | None:
        found = schema.get("items") if isinstance(key, int) else schema.get("properties", {}).get(key)
        found = found or schema.get("additionalProperties")
        return found if isinstance(found, dict) else None

    def _variants(self, schema: Schema) -> Iterator[Schema]:
        """Yields the schema itself, what it refers to, and its alternatives."""
        yield schema
        if "$ref" in schema:
            yield from self._variants(self._root["$defs"][schema["$ref"].rpartition("/")[2]])
        for alternative in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
            yield from self._variants(alternative)

    def _words(self, schema: Schema) -> str | None:
        if "anyOf" in schema or "oneOf" in schema:
            parts = [self._words(one) for one in schema.get("anyOf") or schema["oneOf"]]
            return " or ".join(dict.fromkeys(part for part in parts if part)) or None
        values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
        if values:
            return one_of([repr(value) for value in values])
        if "$ref" in schema:
            return next((words for one in list(self._variants(schema))[1:] if (words := self._words(one))), None)
        return self._type_words(schema)

    def _type_words(self, schema: Schema) -> str | None:
        words = _TYPES.get(schema.get("type", ""))
        bounds = [f"{text} {_number(schema[key])}" for key, text in _BOUNDS.items() if key in schema]
        items = self._words(schema.get("items", {})) if words == _TYPES["array"] else None
        if items:
            return f"a list (each {items})"
        return " ".join([words, " and ".join(bounds)]).rstrip() if words else None


def one_of(words: list[str]) -> str:
    """Returns ``a, b or c``."""
    return " or ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"
