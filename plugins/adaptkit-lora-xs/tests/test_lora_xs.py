"""The paper's own properties: what trains, between which directions, on layers of every kind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from adaptkit_lora_xs import LoraXS, LoraXSOptions
from adaptkit_lora_xs.layers import Update, adapted_layers, whole_weight
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from adaptkit import AdaptContext
from adaptkit.errors import ModelError

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
IDS = torch.arange(12).view(2, 6)
CONTEXT = AdaptContext(
    family="decoder",
    task="causal-lm",
    peft_task_type="CAUSAL_LM",
    head_modules=(),
    new_parameters=(),
    tokenizer=None,
    total_steps=1,
    seed=0,
    precision="fp32",
)


def llama() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_key_value_heads=2, **SIZES))
    return model.eval().requires_grad_(False)


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=64, n_layer=2, n_head=4, n_positions=16))
    return model.eval().requires_grad_(False)


def adapted(model: nn.Module, **options: Any) -> tuple[LoraXS, nn.Module]:
    """Returns a strategy and its model, as they are when a run begins."""
    strategy = LoraXS(LoraXSOptions(name="lora-xs", **options))
    model = strategy.adapt(model, CONTEXT)
    strategy.initialize(model, CONTEXT, [])
    return strategy, model


def updates(model: nn.Module) -> dict[str, tuple[nn.Module, Update]]:
    return {name: (layer, layer.get_submodule("lora_xs")) for name, layer in adapted_layers(model).items()}  # type: ignore[misc]


def stir(model: nn.Module) -> None:
    """Gives every R large random numbers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, update in updates(model).values():
            update.core.copy_(torch.randn(update.core.shape, generator=generator))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("make", [llama, gpt2])
def test_with_the_identity_as_r_the_update_is_the_best_approximation_of_the_weight(make: Any) -> None:
    _, model = adapted(make(), r=8, lora_alpha=8)
    for layer, update in updates(model).values():
        weight = whole_weight(layer)
        with torch.no_grad():
            update.core.copy_(torch.eye(8))
        beyond = torch.linalg.svdvals(weight)[8:]
        assert float((weight - update.delta().detach()).norm()) == pytest.approx(float(beyond.norm()), rel=1e-4)


def test_what_trains_does_not_depend_on_the_width_of_the_model() -> None:
    counts = []
    for width in (32, 64):
        config = LlamaConfig(**{**SIZES, "hidden_size": width}, vocab_size=32, num_key_value_heads=2)
        _, model = adapted(LlamaForCausalLM(config).requires_grad_(False), r=5)
        counts.append(sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad))
    assert counts == [2 * 7 * 5**2] * 2


def test_a_layer_with_fewer_directions_than_r_uses_all_that_it_has() -> None:
    _, model = adapted(llama(), r=48)
    found = {name.rpartition(".")[2]: update for name, (_, update) in updates(model).items()}
    assert found["k_proj"].core.shape == (32, 32)  # two heads of 16
    assert found["q_proj"].core.shape == (48, 48)


def test_at_the_start_r_is_zero_and_has_a_gradient() -> None:
    _, model = adapted(llama(), r=4)
    model(input_ids=IDS, labels=IDS).loss.backward()
    for _, update in updates(model).values():
        assert not update.core.any()
        assert update.core.grad is not None
        assert float(update.core.grad.norm()) > 0


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_merged_model_has_nothing_of_it_left_and_gives_the_same(make: Any) -> None:
    names = {name for name, _ in make().named_modules()}
    strategy, model = adapted(make(), r=4)
    stir(model)
    wanted, base = logits(model), logits(make())
    assert not torch.allclose(wanted, base, atol=1e-2)
    merged = strategy.merge(model)
    assert torch.allclose(logits(merged), wanted, atol=1e-4)
    assert {name for name, _ in merged.named_modules()} == names
    assert not any(module._forward_hooks for module in merged.modules())


def test_a_copy_is_merged_and_switched_off_without_the_original() -> None:
    strategy, model = adapted(llama(), r=4)
    stir(model)
    twin = copy.deepcopy(model)
    wanted = logits(model)
    assert torch.equal(logits(twin), wanted)
    with strategy.disabled(twin):
        assert torch.equal(logits(twin), logits(llama()))
        assert torch.equal(logits(model), wanted)
    strategy.merge(twin)
    assert torch.equal(logits(model), wanted)


def quantized(kind: str) -> nn.Module:
    """Returns a layer of bitsandbytes in a model, and nothing else."""
    import bitsandbytes as bnb

    torch.manual_seed(0)
    plain = nn.Linear(64, 32)
    if kind == "nf4":
        layer: Any = bnb.nn.Linear4bit(64, 32, quant_type="nf4", compute_dtype=torch.float32)
    else:
        layer = bnb.nn.Linear8bitLt(64, 32, has_fp16_weights=False, threshold=6.0)
    layer.load_state_dict(plain.state_dict())
    return nn.ModuleDict({"layer": layer.to("cpu")}).requires_grad_(False)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("after_a_forward_pass", [False, True])
def test_the_directions_of_a_quantised_layer_are_those_of_what_it_computes(
    kind: str, after_a_forward_pass: bool
) -> None:
    model = quantized(kind)
    layer: Any = model.get_submodule("layer")
    if after_a_forward_pass:
        layer(torch.ones(1, 64))
    computed = (layer(torch.eye(64)) - layer(torch.zeros(1, 64))).T
    _, model = adapted(model, r=32, lora_alpha=32)
    (_, update) = updates(model)["layer"]
    with torch.no_grad():
        update.core.copy_(torch.eye(32))
    assert float((update.delta().detach() - computed).norm() / computed.norm()) < 0.02


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_weights_are_not_merged_into(kind: str) -> None:
    strategy, model = adapted(quantized(kind), r=4)
    with pytest.raises(ModelError, match="quantised") as error:
        strategy.merge(model)
    assert error.value.problems[0].where == "layer"
    assert updates(model)


def test_only_the_named_layers_are_adapted() -> None:
    _, model = adapted(llama(), target_modules=["q_proj", "mlp.down_proj"])
    assert {name.rpartition(".")[2] for name in updates(model)} == {"q_proj", "down_proj"}


def test_names_that_match_no_layer_are_refused_all_at_once_with_those_that_exist() -> None:
    with pytest.raises(ModelError) as error:
        adapted(llama(), target_modules=["q_proj", "query", "proj"])
    assert [problem.found for problem in error.value.problems] == [
        "no linear layer is called 'query'",
        "no linear layer is called 'proj'",
    ]
    assert "k_proj" in str(error.value)
