"""A base is loaded from safe files, is known by its contents, and its faults are one block to read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from adaptkit.errors import ModelError
from adaptkit.models.base.configs import load_config
from adaptkit.models.base.loading import load_model
from adaptkit.models.base.source import ModelSource, open_source
from adaptkit.models.base.tokenizers import load_tokenizer
from adaptkit.recipe import ModelSpec, Precision


@pytest.fixture
def base(tiny_bert: Path, tmp_path: Path) -> Path:
    """Returns a copy of the tiny base that may be changed."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "base"))


def spec(folder: Path) -> ModelSpec:
    return ModelSpec(name=str(folder))


def source(folder: Path) -> ModelSource:
    return open_source(spec(folder))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_weights_are_stored_as_asked(precision: Precision, dtype: torch.dtype, tiny_bert: Path) -> None:
    model, missing = load_model(AutoModel, source(tiny_bert), tiny.numerics(precision))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert missing == []


def test_a_new_head_is_reported_and_never_quantised(tiny_bert: Path) -> None:
    model, missing = load_model(
        AutoModelForSequenceClassification, source(tiny_bert), tiny.numerics("nf4"), num_labels=2
    )
    assert missing == ["classifier.bias", "classifier.weight"]
    packed = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert "bert.encoder.layer.0.attention.self.query" in packed
    assert "classifier" not in packed


def test_layer_norms_of_a_quantised_base_stay_whole_around_bf16_arithmetic(tiny_bert: Path) -> None:
    model, _ = load_model(AutoModel, source(tiny_bert), tiny.numerics("nf4", bf16=True))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {parameter.dtype for norm in norms for parameter in norm.parameters()} == {torch.float32}
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_the_fingerprint_is_of_contents_not_of_place_or_time(base: Path, tmp_path: Path) -> None:
    first = source(base).fingerprint
    moved = base.rename(tmp_path / "moved")
    (moved / "model.safetensors").touch()
    (moved / "README.md").write_text("notes", encoding="utf-8")
    assert source(moved).fingerprint == first


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"])
def test_whatever_decides_what_a_base_computes_is_in_its_fingerprint(file: str, base: Path) -> None:
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text("{}", encoding="utf-8")
    before = source(base).fingerprint
    with (base / file).open("ab") as opened:
        opened.write(b" ")
    assert source(base).fingerprint != before


def test_weights_in_a_pickle_are_refused(base: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    for precision in ("fp32", "nf4"):
        with pytest.raises(ModelError, match="safetensors"):
            load_model(AutoModel, source(base), tiny.numerics(precision))


def test_code_beside_a_model_is_not_run(base: Path) -> None:
    config = (base / "config.json").read_text(encoding="utf-8")
    own = config.replace('"model_type": "bert"', '"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}')
    assert own != config
    (base / "config.json").write_text(own, encoding="utf-8")
    (base / "own.py").write_text("raise SystemExit('the code ran')", encoding="utf-8")
    with pytest.raises(ModelError):
        load_config(spec(base))


def load(folder: Path) -> None:
    load_model(AutoModel, source(folder), tiny.numerics())


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("size", [0, 20, -20])
def test_a_damaged_base_is_one_block(file: str, size: int, base: Path) -> None:
    (base / file).write_bytes((base / file).read_bytes()[:size])
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        load(base)
    assert str(base) in str(error.value)


def test_weights_of_other_shapes_than_the_config_says_are_one_block(base: Path) -> None:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}), encoding="utf-8")
    with pytest.raises(ModelError, match="other shapes than its config says"):
        load(base)


@pytest.mark.parametrize("key", ["encoder.layer.1.output.dense.weight", "embeddings.word_embeddings.weight"])
def test_a_base_that_lacks_weights_of_its_own_is_refused_not_filled_with_random_ones(key: str, base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    del weights[key]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    for auto_class in (AutoModel, AutoModelForSequenceClassification):
        with pytest.raises(ModelError, match="weights of the base are not in its files") as error:
            load_model(auto_class, source(base), tiny.numerics())
        assert key in str(error.value)


def test_a_base_without_a_pooler_may_get_a_new_one(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    _, missing = load_model(AutoModelForSequenceClassification, source(base), tiny.numerics())
    assert {name.rpartition(".")[0] for name in missing} == {"bert.pooler.dense", "classifier"}


def test_a_tokenizer_without_padding_pads_with_its_end(base: Path) -> None:
    settings = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    for name in ("pad_token", "mask_token", "unk_token", "cls_token", "sep_token"):
        settings.pop(name, None)
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "[SEP]"}
    (base / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert load_tokenizer(spec(base)).pad_token == "[SEP]"
    settings.pop("eos_token")
    (base / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ModelError, match="neither a padding nor an end token"):
        load_tokenizer(spec(base))
