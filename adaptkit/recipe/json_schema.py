"""JSON Schema of a recipe, for completion and checking in editors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema
from pydantic_core import core_schema

from adaptkit.recipe.schema import NamedOptions, Recipe, StrategyOptions, TaskOptions
from adaptkit.recipe.stages import CHANGEABLE, STAGES

_REF = "#/$defs/"


class LenientJsonSchema(GenerateJsonSchema):
    """Allows anything where a plugin's type has no JSON Schema, instead of failing."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    def handle_invalid_for_json_schema(self, schema: core_schema.CoreSchema, error_info: str) -> dict[str, Any]:
        """Returns the schema that allows everything."""
        return {}


def recipe_json_schema(
    strategies: Mapping[str, type[StrategyOptions]], tasks: Mapping[str, type[TaskOptions]]
) -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of recipes with these strategies and tasks, by name."""
    models: set[type[BaseModel]] = {Recipe, *strategies.values(), *tasks.values()}
    inputs: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        (model, "validation") for model in sorted(models, key=lambda model: (model.__module__, model.__qualname__))
    ]
    references, schema = models_json_schema(inputs, schema_generator=LenientJsonSchema)
    definitions = schema["$defs"]
    by_model = {
        model: definitions[reference["$ref"].removeprefix(_REF)] for (model, _), reference in references.items()
    }
    recipe = by_model[Recipe]
    sections = {
        **recipe["properties"],
        "model": {"anyOf": [{"type": "string"}, recipe["properties"]["model"]]},
        "task": _chosen("task", {name: by_model[model] for name, model in tasks.items()}),
        "strategy": _chosen("strategy", {name: by_model[model] for name, model in strategies.items()}),
    }
    sections[STAGES] = {"type": "array", "minItems": 1, "items": _stage(recipe, definitions)}
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **recipe,
        "title": "adaptkit recipe",
        "properties": sections,
        "required": [key for key in recipe["required"] if key != "strategy"],
        "oneOf": [{"required": ["strategy"]}, {"required": [STAGES]}],
    }
    return {**whole, "$defs": _used(definitions, sections)}


def _stage(recipe: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the schema of one stage: the sections that it may change, or what it may change in them."""
    sections: dict[str, Any] = {}
    for key, inner in CHANGEABLE.items():
        whole = definitions.get(recipe["properties"][key].get("$ref", "").removeprefix(_REF), {})
        sections[key] = {"$ref": f"#/properties/{key}"} if inner is None else _section(whole, inner)
    return {"title": "stage", **_section({"properties": sections}, tuple(sections)), "required": ["strategy"]}


def _section(whole: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    properties = {key: whole["properties"][key] for key in keys}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _chosen(title: str, options: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns: a bare name, where its options all have defaults, or a section for each name."""
    short = [
        name for name, schema in options.items() if set(schema.get("required", ())) <= set(NamedOptions.model_fields)
    ]
    return {"title": title, "anyOf": [{"enum": short}, *(_named(name, schema) for name, schema in options.items())]}


def _named(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    properties = {**schema["properties"], "name": {**schema["properties"]["name"], "const": name}}
    return {**schema, "title": name, "properties": properties}


def _used(definitions: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    """Returns the definitions that something still refers to, directly or through another one."""
    found: dict[str, Any] = {}
    text = json.dumps(sections)
    while new := {
        name: schema for name, schema in definitions.items() if name not in found and f'"{_REF}{name}"' in text
    }:
        found |= new
        text = json.dumps(new)
    return found
