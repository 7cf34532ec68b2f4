from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from adaptkit.memory.fakes import held_tensors
from adaptkit.models.base.skeleton import without_weights
from adaptkit.models.base.source import open_source
from adaptkit.recipe import ModelSpec, Precision
from adaptkit.testing.bases import workshop


def load(name: str, auto: str, precision: Precision, *, skeleton: bool) -> tuple[nn.Module, list[str]]:
    import transformers

    from adaptkit.models.base.loading import load_model

    source = open_source(ModelSpec(name=name))
    source = without_weights(source) if skeleton else source
    return load_model(getattr(transformers, auto), source, tiny.numerics(precision))


def shapes(model: nn.Module) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in model.named_parameters()}


def held_bytes(model: nn.Module) -> int:
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in held_tensors(model)}
    return sum(storages.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4", "int8"])
@pytest.mark.parametrize(
    ("base", "auto"),
    [
        ("llama", "AutoModelForCausalLM"),
        ("bert", "AutoModelForSequenceClassification"),
        ("gpt2", "AutoModelForSequenceClassification"),
        ("t5", "AutoModelForSeq2SeqLM"),
    ],
)
def test_a_skeleton_has_the_tensors_of_the_model(base: str, auto: str, precision: Precision) -> None:
    real, missing = load(workshop().base(base), auto, precision, skeleton=False)
    bones, thought_missing = load(workshop().base(base), auto, precision, skeleton=True)
    assert all(parameter.is_meta for parameter in bones.parameters())
    assert shapes(bones) == shapes(real)
    assert thought_missing == missing
    assert held_bytes(bones) == held_bytes(real)


def test_a_config_is_enough(tmp_path: Path) -> None:
    base = Path(workshop().base("llama"))
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    bones, missing = load(str(tmp_path), "AutoModelForCausalLM", "bf16", skeleton=True)
    assert sum(parameter.numel() for parameter in bones.parameters()) > 0
    assert missing == []


def test_a_bare_encoder_lacks_the_head_of_a_masked_model(tiny_bert: Path) -> None:
    _, missing = load(str(tiny_bert), "AutoModelForMaskedLM", "fp32", skeleton=False)
    _, thought_missing = load(str(tiny_bert), "AutoModelForMaskedLM", "fp32", skeleton=True)
    from adaptkit.models.language.model import _really_new

    bones, _ = load(str(tiny_bert), "AutoModelForMaskedLM", "fp32", skeleton=True)
    assert _really_new(bones, thought_missing) == _really_new(bones, missing)


def test_nf4_with_double_quantisation_takes_0_516_bytes_a_weight() -> None:
    import bitsandbytes as bnb

    from adaptkit.models.base.skeleton import _pack_4bit

    with torch.device("meta"):
        layer = bnb.nn.Linear4bit(4096, 4096, bias=False)
    _pack_4bit(layer, torch.bfloat16)
    assert held_bytes(layer) / 4096**2 == pytest.approx(0.5 + 1 / 64 + 4 / (64 * 256), rel=1e-3)
