"""Linear layers and stacks of blocks are found in every architecture, and so is a parameter's true size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from adaptkit.errors import ModelError
from adaptkit.models.layers import block_stacks, count_parameters, linear_layers

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
# model type -> the stacks of its blocks, with their length, and the linear layers of a block
STACKS: dict[str, tuple[dict[str, int], int]] = {
    "bert": ({"encoder.layer": 3}, 6),
    "roberta": ({"encoder.layer": 3}, 6),
    "electra": ({"encoder.layer": 3}, 6),
    "distilbert": ({"transformer.layer": 3}, 6),
    "modernbert": ({"layers": 3}, 4),
    "gpt2": ({"h": 3}, 4),
    "llama": ({"layers": 3}, 7),
    "t5": ({"encoder.block": 3, "decoder.block": 3}, 6),
    "bart": ({"encoder.layers": 3, "decoder.layers": 3}, 6),
}
OTHER_NAMES = {"n_layer": 3, "n_layers": 3, "num_layers": 3, "encoder_layers": 3, "decoder_layers": 3, "dim": 32}
HEADS = {"n_heads": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "hidden_dim": 48}


def build(model_type: str, auto_class: Any = AutoModel) -> nn.Module:
    defaults = AutoConfig.for_model(model_type).to_dict()
    sizes = {**SIZES, **{name: value for name, value in (OTHER_NAMES | HEADS).items() if name in defaults}}
    with torch.device("meta"):
        model: nn.Module = auto_class.from_config(AutoConfig.for_model(model_type, **sizes, pad_token_id=0))
    return model


@pytest.mark.parametrize("model_type", STACKS)
def test_the_stacks_of_blocks(model_type: str) -> None:
    stacks = block_stacks(build(model_type))
    assert {name: len(blocks) for name, blocks in stacks} == STACKS[model_type][0]


@pytest.mark.parametrize("model_type", STACKS)
def test_the_linear_layers_of_every_block(model_type: str) -> None:
    model = build(model_type)
    first = next(iter(STACKS[model_type][0]))
    layers = linear_layers(model)
    for block in range(3):
        assert len([name for name in layers if name.startswith(f"{first}.{block}.")]) == STACKS[model_type][1]


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_the_output_embedding_is_no_linear_layer_of_the_base(model_type: str) -> None:
    model = build(model_type, AutoModelForCausalLM)
    assert "lm_head" in dict(model.named_modules())
    assert "lm_head" not in linear_layers(model)


def test_the_head_is_left_out_with_all_that_is_in_it() -> None:
    model = build("roberta", AutoModelForSequenceClassification)
    assert {"classifier.dense", "classifier.out_proj"} <= set(linear_layers(model))
    left = linear_layers(model, without=("classifier",))
    assert left
    assert not [name for name in left if name.startswith("classifier")]


def test_a_model_without_blocks_is_refused_with_what_works_instead() -> None:
    with pytest.raises(ModelError, match="no stack of transformer blocks") as error:
        block_stacks(nn.Sequential(nn.Linear(2, 2)))
    assert "lora" in str(error.value)


def test_parameters_are_counted_once_even_where_they_are_tied() -> None:
    model = build("gpt2", AutoModelForCausalLM).requires_grad_(False)
    tied = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(model) == (0, tied)
    model.get_submodule("lm_head").requires_grad_(True)
    assert count_parameters(model) == (50 * 32, tied)
