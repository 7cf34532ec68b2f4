"""Which family a model belongs to, from its config alone and without torch."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from adaptkit.strategy import Family


@cache
def _model_types(mapping: str) -> frozenset[str]:
    """Reads the model types of one of transformers' Auto mappings from its source, which costs no import of torch."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return frozenset()
    source = Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == mapping:
            assert isinstance(node.value, ast.Call)
            pairs = node.value.args[0]
            assert isinstance(pairs, ast.List)
            return frozenset(pair.elts[0].value for pair in pairs.elts)  # type: ignore[attr-defined]
    return frozenset()


def family_of(config: Mapping[str, Any]) -> Family:
    """Returns the family of a model from the values of its ``config.json``.

    An architecture that transformers offers for masked language modelling reads in both directions; one
    that it offers for causal language modelling alone reads from left to right.
    """
    if config.get("is_encoder_decoder"):
        return "encoder-decoder"
    model_type = config.get("model_type", "")
    if model_type in _model_types("MODEL_FOR_MASKED_LM_MAPPING_NAMES"):
        return "encoder"
    if model_type in _model_types("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"):
        return "decoder"
    return "encoder"


def local_family(model_name: str) -> Family | None:
    """Returns the family of a model in a local folder, or None when there is no readable config."""
    try:
        values = json.loads((Path(model_name) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return family_of(values) if isinstance(values, dict) else None
