"""What a strategy declares trains, all of it and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BartConfig, BartForConditionalGeneration

from adaptkit.models.adaptation import adapt_model
from adaptkit.models.base.source import open_source
from adaptkit.models.heads.classifier import load_classifier
from adaptkit.models.layers import count_parameters
from adaptkit.recipe import ModelSpec, Precision, Recipe
from adaptkit.registry import load_registry
from adaptkit.task import BaseModel
from adaptkit.training.loop import training_steps

MakeRecipe = Callable[..., Recipe]
EVERY_STRATEGY = pytest.mark.parametrize("strategy", tiny.STRATEGIES)
# Part of a name -> whether such a parameter trains; the first that is found decides.
DECLARED: dict[str, dict[str, bool]] = {
    "full": {"": True},
    "last-layers": {"layer.1.": True, "pooler.": True, "classifier.": True, "": False},
    "linear-probe": {"classifier.": True, "": False},
    "lora": {"lora_": True, "classifier.": True, "": False},
    "qlora": {"lora_": True, "classifier.": True, "": False},
    "prefix-tuning": {"prefix_kv.": True, "classifier.": True, "": False},
}


def trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@EVERY_STRATEGY
def test_what_is_declared_trains_and_the_rest_stays_bit_for_bit(strategy: str, recipe: MakeRecipe) -> None:
    job, adapted = tiny.make_job(recipe(strategy, epochs=1, max_grad_norm=None))
    declared = {
        name
        for name, _ in job.model.named_parameters()
        if next(trains for part, trains in DECLARED[strategy].items() if part in name)
    }
    assert trainable(job.model).keys() == declared
    assert all(parameter.dtype == torch.float32 for parameter in trainable(job.model).values())

    before = tiny.every_tensor(job.model)
    list(training_steps(job))
    assert changed(before, tiny.every_tensor(job.model)) == declared
    assert adapted.base.module is job.model


@pytest.mark.parametrize("pooling", ["native", "mean"])
@pytest.mark.parametrize("strategy", ["last-layers", "linear-probe", "lora", "prefix-tuning"])
def test_on_a_16_bit_base_what_trains_is_fp32_and_learns(strategy: str, pooling: str, recipe: MakeRecipe) -> None:
    chosen = recipe(strategy, task={"pooling": pooling}, compute="bf16", epochs=1)
    base = chosen.model.model_copy(update={"precision": "bf16"})
    job, _ = tiny.make_job(chosen.model_copy(update={"model": base}))
    for parameter in job.model.parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
    before = tiny.every_tensor(job.model)
    list(training_steps(job))
    assert changed(before, tiny.every_tensor(job.model)) == trainable(job.model).keys()


def test_the_last_layers_of_an_encoder_decoder_are_no_embeddings() -> None:
    sizes = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 40, "pad_token_id": 1}
    config = BartConfig(
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, **sizes
    )
    model = BartForConditionalGeneration(config).requires_grad_(False)
    options = load_registry().strategy_options("last-layers")(name="last-layers", num_layers=1)
    context: Any = SimpleNamespace(head_modules=())
    adapted = load_registry().strategy("last-layers")(options).adapt(model, context)
    assert {name.partition("layers.")[2].partition(".")[0] for name in trainable(adapted)} == {"1"}


def test_packed_weights_and_their_quantisation_state_are_among_what_stays(recipe: MakeRecipe) -> None:
    job, _ = tiny.make_job(recipe("qlora"))
    tensors = tiny.every_tensor(job.model)
    packed = [name for name, tensor in tensors.items() if name.endswith("weight") and tensor.dtype == torch.uint8]
    assert len(packed) == 2 * 6 + 1  # in each layer query, key, value, output, up and down; and the pooler
    assert all({f"{name}/absmax", f"{name}/nested_absmax", f"{name}/quant_map"} <= tensors.keys() for name in packed)


@EVERY_STRATEGY
def test_parameters_are_counted_as_the_weights_that_they_stand_for(strategy: str, recipe: MakeRecipe) -> None:
    job, _ = tiny.make_job(recipe(strategy))
    plain, _ = tiny.make_job(recipe("full"))
    size, everything = count_parameters(job.model)
    assert size == sum(parameter.numel() for parameter in trainable(job.model).values())
    added = sum(p.numel() for name, p in trainable(job.model).items() if "lora_" in name or "prefix_kv." in name)
    assert everything == added + sum(parameter.numel() for parameter in plain.model.parameters())


def head(folder: Path, seed: int, precision: Precision = "fp32", pooling: Any = "native") -> dict[str, Tensor]:
    base = load_classifier(
        open_source(ModelSpec(name=str(folder))),
        numerics=tiny.numerics(precision),
        seed=seed,
        labels=["a", "b"],
        pooling=pooling,
        dropout=0.0,
    )
    assert base.head_modules == ("classifier",)
    assert set(base.new_parameters) == {"classifier.weight", "classifier.bias"}
    return {name: p.detach().float() for name, p in base.module.get_submodule("classifier").named_parameters()}


@pytest.mark.parametrize("pooling", ["native", "mean"])
def test_a_new_head_is_a_function_of_the_seed_alone(pooling: str, tiny_bert: Path) -> None:
    reference = head(tiny_bert, 1, pooling=pooling)
    torch.manual_seed(99)
    drawn = torch.get_rng_state()
    assert not changed(reference, head(tiny_bert, 1, pooling=pooling))
    assert torch.equal(torch.get_rng_state(), drawn), "loading a base draws no number from the run's generator"
    assert "weight" in changed(reference, head(tiny_bert, 2, pooling=pooling))
    assert not changed(reference, head(tiny_bert, 1, "nf4", pooling))


@EVERY_STRATEGY
def test_adapt_gives_the_same_structure_on_the_meta_device(strategy: str, recipe: MakeRecipe, tiny_bert: Path) -> None:
    job, adapted = tiny.make_job(recipe(strategy))
    with torch.device("meta"):
        module = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tiny_bert))
    base = BaseModel(
        module, adapted.base.tokenizer, "encoder", "fp32", adapted.base.head_modules, adapted.base.new_parameters
    )
    planner = load_registry().strategy(strategy)(recipe(strategy).strategy)
    planned = trainable(adapt_model(planner, base, adapted.context))
    assert all(parameter.is_meta for parameter in planned.values())
    assert {name: p.shape for name, p in planned.items()} == {n: p.shape for n, p in trainable(job.model).items()}
