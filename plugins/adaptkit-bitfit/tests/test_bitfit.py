"""What the paper says of BitFit, and what each architecture makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adaptkit_bitfit import BitFit, BitFitOptions
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from adaptkit import AdaptContext
from adaptkit.errors import ModelError

BERT_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


def adapted(model_class: Any, config: Any, biases: str = "all", head: tuple[str, ...] = ()) -> nn.Module:
    """Returns a frozen model on the meta device after BitFit has said what trains."""
    with torch.device("meta"):
        model = model_class(config).requires_grad_(False)
    context = AdaptContext(
        family="encoder",
        task="text-classification",
        peft_task_type="SEQ_CLS",
        head_modules=head,
        new_parameters=(),
        tokenizer=None,
        total_steps=0,
        seed=0,
        precision="fp32",
    )
    return BitFit(BitFitOptions.model_validate({"name": "bitfit", "biases": biases})).adapt(model, context)


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def sizes(model: nn.Module) -> tuple[int, int]:
    """Returns how many parameters train, and how many there are in the base."""
    base = [(name, p) for name, p in model.named_parameters() if not name.startswith("classifier")]
    return sum(p.numel() for _, p in base if p.requires_grad), sum(p.numel() for _, p in base)


@pytest.mark.parametrize(("biases", "percent"), [("all", 0.08), ("query-and-middle", 0.04)])
def test_the_share_of_bert_large_that_trains_is_the_papers(biases: str, percent: float) -> None:
    trains, everything = sizes(adapted(BertForSequenceClassification, BertConfig(**BERT_LARGE), biases))
    assert round(100 * trains / everything, 2) == percent


def test_biases_train_and_weights_do_not_except_in_the_head() -> None:
    model = adapted(BertForSequenceClassification, BertConfig(num_hidden_layers=2), head=("classifier",))
    assert trainable(model) == {name for name, _ in model.named_parameters() if name.endswith("bias")} | {
        "classifier.weight"
    }


def test_the_subset_is_the_bias_of_the_queries_and_of_the_wide_layer() -> None:
    model = adapted(BertForSequenceClassification, BertConfig(num_hidden_layers=1), "query-and-middle")
    block = "bert.encoder.layer.0"
    assert trainable(model) == {f"{block}.attention.self.query.bias", f"{block}.intermediate.dense.bias"}


def test_where_one_bias_is_that_of_queries_keys_and_values_it_trains_whole() -> None:
    model = adapted(GPT2LMHeadModel, GPT2Config(n_layer=1), "query-and-middle")
    assert trainable(model) == {"transformer.h.0.attn.c_attn.bias", "transformer.h.0.mlp.c_fc.bias"}


def test_a_model_whose_attention_alone_has_biases_trains_those() -> None:
    model = adapted(Qwen2ForCausalLM, Qwen2Config(num_hidden_layers=1))
    assert {name.rpartition("self_attn.")[2] for name in trainable(model)} == {
        "q_proj.bias",
        "k_proj.bias",
        "v_proj.bias",
    }


@pytest.mark.parametrize(
    ("model_type", "query", "middle"),
    [
        ("distilbert", "attention.q_lin", "ffn.lin1"),
        ("albert", "attention.query", "ffn"),
        ("mpnet", "attention.attn.q", "intermediate.dense"),
        ("deberta-v2", "attention.self.query_proj", "intermediate.dense"),
        ("gpt_neox", "attention.query_key_value", "mlp.dense_h_to_4h"),
        ("opt", "self_attn.q_proj", "fc1"),
        ("phi", "self_attn.q_proj", "mlp.fc1"),
    ],
)
def test_the_subset_is_found_by_the_names_of_each_architecture(model_type: str, query: str, middle: str) -> None:
    model = adapted(AutoModel.from_config, AutoConfig.for_model(model_type), "query-and-middle")
    suffixes = tuple(f".{name}.bias" for name in (query, middle))
    assert trainable(model) == {name for name, _ in model.named_parameters() if name.endswith(suffixes)}
    assert all(any(name.endswith(suffix) for name in trainable(model)) for suffix in suffixes)


@pytest.mark.parametrize("biases", ["all", "query-and-middle"])
@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (LlamaForCausalLM, LlamaConfig(num_hidden_layers=1)),
        (T5ForConditionalGeneration, T5Config(num_layers=1)),
    ],
)
def test_a_model_without_biases_is_refused_with_what_to_do(model_class: Any, config: Any, biases: str) -> None:
    with pytest.raises(ModelError, match="has no biases") as error:
        adapted(model_class, config, biases)
    assert "lora" in str(error.value)
