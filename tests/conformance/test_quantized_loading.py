"""A quantised base from the cache is the one that was quantised, bit by bit; a damaged entry is made anew."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import tiny
import torch
import transformers
from torch import nn

from adaptkit.models.base.loading import load_model
from adaptkit.models.base.quantized_cache import MANIFEST, cache_root
from adaptkit.models.base.source import open_source
from adaptkit.recipe import ModelSpec, Precision
from adaptkit.testing.bases import BASES, SIZES, TinyBase, write_base

ARCHITECTURES = {
    **BASES,
    "bart": TinyBase(
        "encoder-decoder",
        "bart",
        {"d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128},
        "seq2seq",
    ),
    "modernbert": TinyBase("encoder", "modernbert", {**SIZES, "max_position_embeddings": 64}, "masked-lm"),
    "mixtral": TinyBase("decoder", "mixtral", {**SIZES, "num_key_value_heads": 2, "num_local_experts": 2}, "causal-lm"),
}
LANGUAGE_MODELS = {
    "encoder": transformers.AutoModelForMaskedLM,
    "decoder": transformers.AutoModelForCausalLM,
    "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
}
QUANTIZERS = ("quantize_4bit", "int8_vectorwise_quant")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTKIT_CACHE", str(tmp_path / "cache"))
    return cache_root()


@pytest.fixture
def quantized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list that gets a name whenever bitsandbytes quantises a matrix."""
    calls: list[str] = []

    def recorded(name: str) -> Callable[..., Any]:
        real = getattr(bnb.functional, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return real(*arguments, **options)

        return call

    for name in QUANTIZERS:
        monkeypatch.setattr(bnb.functional, name, recorded(name))
    return calls


def folder_of(bases: Path, name: str) -> Path:
    if not (bases / name).is_dir():
        write_base(bases / name, ARCHITECTURES[name])
    return bases / name


def load(
    folder: Path,
    auto_class: Any,
    *,
    cached: bool = True,
    precision: Precision = "nf4",
    bf16: bool = False,
    **values: Any,
) -> tuple[Any, list[str]]:
    source = open_source(ModelSpec(name=str(folder), cache_quantized=cached))
    torch.manual_seed(values.pop("seed", 0))
    return load_model(auto_class, source, tiny.numerics(precision, bf16=bf16), **values)


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(5, 15).reshape(2, 5)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        result: torch.Tensor = model(**inputs).logits
    return result


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Checks that two models have the same tensors, quantisation states included, in the same precisions."""
    tensors, others = one.state_dict(), other.state_dict()
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == others[name].dtype, name
        assert torch.equal(tensor, others[name]), name
    assert [type(module) for module in one.modules()] == [type(module) for module in other.modules()]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("precision", ["nf4", "int8"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_base_from_the_cache_is_the_quantised_one(
    name: str, precision: Any, bf16: bool, bases: Path, quantized: list[str]
) -> None:
    folder, auto_class = folder_of(bases, name), LANGUAGE_MODELS[ARCHITECTURES[name].family]
    kind: dict[str, Any] = {"precision": precision, "bf16": bf16}
    plain, missing = load(folder, auto_class, cached=False, **kind)
    first, _ = load(folder, auto_class, **kind)
    assert quantized
    quantized.clear()
    again, missing_again = load(folder, auto_class, **kind)
    assert not quantized
    assert missing_again == missing
    for model in (first, again):
        assert_same(plain, model)
        assert torch.equal(logits(plain), logits(model))
        assert model.config.to_dict() == plain.config.to_dict()
        assert model.name_or_path == plain.name_or_path == str(folder)
        if plain.can_generate():
            assert model.generation_config.to_dict() == plain.generation_config.to_dict()


def packed(model: nn.Module) -> Iterator[bnb.nn.Linear4bit]:
    return (module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit))


def test_gradients_after_an_evaluation_stay_those_of_before_it(bases: Path) -> None:
    folder = folder_of(bases, "llama")
    for _ in range(2):
        model, _ = load(folder, transformers.AutoModelForCausalLM, bf16=True)
        assert {layer.support_avx512bf16_for_cpu for layer in packed(model)} == {False}
    before = input_gradient(model)
    logits(model.eval())
    assert torch.equal(input_gradient(model), before)
    assert before.abs().sum() > 0


def input_gradient(model: Any) -> torch.Tensor:
    embedded = model.get_input_embeddings()(torch.arange(5, 15).reshape(2, 5)).detach().requires_grad_()
    model(inputs_embeds=embedded).logits.float().square().mean().backward()
    gradient: torch.Tensor | None = embedded.grad
    assert gradient is not None
    return gradient


@pytest.mark.parametrize("precision", ["nf4", "int8"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_output_embeddings_and_what_the_files_lack_stay_whole(name: str, precision: Any, bases: Path) -> None:
    auto_class = LANGUAGE_MODELS[ARCHITECTURES[name].family]
    for _ in range(2):
        model, _ = load(folder_of(bases, name), auto_class, precision=precision)
        assert type(model.get_output_embeddings()) is nn.Linear
        assert model.get_input_embeddings().weight.dtype == torch.float32
        norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
        assert {parameter.dtype for norm in norms for parameter in norm.parameters()} == {torch.float32}
        kind = bnb.nn.Linear4bit if precision == "nf4" else bnb.nn.Linear8bitLt
        assert any(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "bart"])
def test_a_new_head_is_drawn_from_the_seed_not_kept_in_the_cache(name: str, bases: Path, quantized: list[str]) -> None:
    head = transformers.AutoModelForSequenceClassification
    plain, missing = load(folder_of(bases, name), head, cached=False, num_labels=3)
    load(folder_of(bases, name), head, num_labels=3, seed=1)
    quantized.clear()
    again, missing_again = load(folder_of(bases, name), head, num_labels=3)
    other, _ = load(folder_of(bases, name), head, num_labels=3, seed=1)
    assert not quantized
    assert missing_again == missing
    assert missing
    assert_same(plain, again)
    weight = next(key for key in missing if key.endswith("weight"))
    assert not torch.equal(again.get_parameter(weight), other.get_parameter(weight))


def flip_a_bit(entry: Path) -> None:
    file = next(entry.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)


def cut_short(entry: Path) -> None:
    file = next(entry.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def lose_the_weights(entry: Path) -> None:
    next(entry.glob("*.safetensors")).unlink()


def lose_the_manifest(entry: Path) -> None:
    (entry / MANIFEST).unlink()


def garble_the_manifest(entry: Path) -> None:
    (entry / MANIFEST).write_bytes(b"\xff[")


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, lose_the_weights, lose_the_manifest, garble_the_manifest])
def test_a_damaged_entry_is_made_anew(damage: Any, bases: Path, cache: Path, quantized: list[str]) -> None:
    folder, auto_class = folder_of(bases, "llama"), transformers.AutoModelForCausalLM
    plain, _ = load(folder, auto_class)
    (entry,) = cache.iterdir()
    damage(entry)
    quantized.clear()
    again, _ = load(folder, auto_class)
    assert quantized
    assert_same(plain, again)
    quantized.clear()
    assert_same(plain, load(folder, auto_class)[0])
    assert not quantized
    assert list(cache.iterdir()) == [entry]


def test_the_cache_holds_safetensors_and_json_alone(bases: Path, cache: Path) -> None:
    load(folder_of(bases, "gpt2"), transformers.AutoModelForCausalLM)
    (entry,) = cache.iterdir()
    assert {file.suffix for file in entry.iterdir()} == {".safetensors", ".json"}
    assert json.loads((entry / MANIFEST).read_text(encoding="utf-8"))["files"]


def test_every_setting_and_every_base_has_an_entry_of_its_own(bases: Path, cache: Path, tmp_path: Path) -> None:
    folder, auto_class = folder_of(bases, "llama"), transformers.AutoModelForCausalLM
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    settings = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 0.01}), encoding="utf-8")
    kinds: tuple[dict[str, Any], ...] = ({}, {"precision": "int8"}, {"bf16": True})
    for number, kind in enumerate(kinds, start=1):
        load(folder, auto_class, **kind)
        load(folder, auto_class, **kind)
        assert len(list(cache.iterdir())) == number
    load(folder, transformers.AutoModel)
    load(other, auto_class)
    assert len(list(cache.iterdir())) == 5


def test_nothing_is_kept_unasked(bases: Path, cache: Path) -> None:
    load(folder_of(bases, "llama"), transformers.AutoModelForCausalLM, cached=False)
    load(folder_of(bases, "llama"), transformers.AutoModelForCausalLM, precision="bf16")
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_costs_a_warning_not_the_run(
    bases: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.write_text("a file where the folder would be", encoding="utf-8")
    with caplog.at_level(logging.WARNING, logger="adaptkit"):
        model, _ = load(folder_of(bases, "llama"), transformers.AutoModelForCausalLM)
    assert "not kept for the next run" in caplog.text
    assert logits(model).isfinite().all()


def test_a_generation_config_that_transformers_would_not_save_is_no_obstacle(bases: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    for file in folder_of(bases, "llama").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "max_length": 77}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    for _ in range(2):
        model, _ = load(folder, transformers.AutoModelForCausalLM)
        assert (model.generation_config.temperature, model.generation_config.max_length) == (0.6, 77)
    assert any(cache_root().iterdir())
