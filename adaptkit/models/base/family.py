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

# Where a finished run says what it was made from; artifact.folder and artifact.saving write it.
RUN_RECORD = Path("adapter") / "adaptkit.json"


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


def local_family(name: str) -> Family | None:
    """Returns the family of a base without asking the hub.

    Args:
        name: A model's folder, the folder of a finished run, or an architecture.

    Returns:
        None when it is none of them, has no readable config, or is of a type that transformers does not have.
    """
    if (config := read_json(Path(name) / "config.json")) is not None:
        known = config.get("model_type") in _model_types("MODEL_MAPPING_NAMES")
        return family_of(config) if known else None
    if (record := read_json(Path(name) / RUN_RECORD)) is not None:
        base = record.get("base")
        return base.get("family") if isinstance(base, dict) else None
    if name not in architectures():
        return None
    # Of an architecture nothing but its name is known: its config class, which has the flag, would import torch.
    both = name in _model_types("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES")
    return family_of({"model_type": name, "is_encoder_decoder": both})


def architectures() -> frozenset[str]:
    """Returns the names of the text models that transformers can make from a config alone (bert, gpt2, t5 …)."""
    kinds = ("MASKED_LM", "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM")
    return frozenset().union(*(_model_types(f"MODEL_FOR_{kind}_MAPPING_NAMES") for kind in kinds))


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the object in a JSON file, or None where there is none to read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@cache
def _model_types(mapping: str) -> frozenset[str]:
    """Reads the model types of one of transformers' Auto mappings from its source, which costs no import of torch."""
    source = _auto_source()
    start = source.find(f"\n{mapping} = ")
    end = source.find("\n)", start)
    if start < 0 or end < 0:
        return frozenset()
    (assignment,) = ast.parse(source[start : end + 2]).body
    assert isinstance(assignment, ast.Assign)
    assert isinstance(assignment.value, ast.Call)
    pairs = assignment.value.args[0]
    assert isinstance(pairs, ast.List)
    return frozenset(pair.elts[0].value for pair in pairs.elts)  # type: ignore[attr-defined]


@cache
def _auto_source() -> str:
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return ""
    return (Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py").read_text(encoding="utf-8")
