"""The paper's own properties: no backward pass through the base, little memory, a gate on every rung."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from adaptkit_ladder_side import LadderSide, LadderSideOptions
from adaptkit_ladder_side.layers import Ladder, Rung, ladder
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from adaptkit import AdaptContext, block_stacks
from adaptkit.errors import ModelError, RecipeError

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
IDS = torch.arange(32).view(2, 16)
MODELS: Mapping[str, Any] = {
    "bert": lambda: BertForMaskedLM(BertConfig(vocab_size=40, **SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=64, n_layer=3, n_head=4, n_positions=32)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=40, num_key_value_heads=2, **SIZES)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=64, num_layers=3, num_heads=4, d_kv=16, d_ff=128, decoder_start_token_id=0)
    ),
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
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


def base(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = MODELS[name]()
    return model.eval().requires_grad_(False)


def adapted(model: nn.Module, **options: Any) -> nn.Module:
    """Returns a model as it is when a run begins."""
    strategy = LadderSide(LadderSideOptions(name="ladder-side", **options))
    model = strategy.adapt(model, CONTEXT)
    strategy.initialize(model, CONTEXT, [])
    return model


def stir(model: nn.Module) -> nn.Module:
    """Lets the side network be heard."""
    with torch.no_grad():
        ladder(model).up.weight.normal_(generator=torch.Generator().manual_seed(1))
    return model


def loss(model: nn.Module) -> Any:
    """Returns the loss, a scalar with a graph."""
    return model(input_ids=IDS, labels=IDS).loss


@contextmanager
def outputs_of_blocks(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what every block hands on, in the order of the stacks."""
    seen: list[Tensor] = []
    handles = [
        block.register_forward_hook(
            lambda _, __, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
        for _, blocks in block_stacks(model)
        for block in blocks
        if not isinstance(block, Rung)
    ]
    yield seen
    for handle in handles:
        handle.remove()


def saved_bytes(model: nn.Module) -> int:
    """Returns how much one forward pass keeps for the backward pass, in bytes, without the weights themselves."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = loss(model)
    assert held.requires_grad
    return sum(kept.values())


@EVERY_MODEL
def test_no_hidden_state_of_the_base_takes_part_in_the_backward_pass(name: str) -> None:
    model = adapted(base(name))
    with outputs_of_blocks(model) as seen:
        loss(model).backward()
    assert [hidden.requires_grad for hidden in seen] == [False] * (len(seen) - 1) + [True]


@EVERY_MODEL
def test_even_where_embeddings_train_they_are_reached_through_the_side_network_alone(name: str) -> None:
    model: Any = stir(adapted(base(name)))
    embeddings = nn.Parameter(model.get_input_embeddings().weight.clone())  # no longer tied to an output layer
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings == len(embeddings):
            module.weight = embeddings
    with outputs_of_blocks(model) as seen:
        loss(model).backward()
    assert not any(hidden.requires_grad for hidden in seen[:-1])
    assert embeddings.grad is not None
    assert float(embeddings.grad.norm()) > 0


@EVERY_MODEL
def test_it_keeps_less_for_the_backward_pass_than_lora_does(name: str) -> None:
    lora: Any = get_peft_model(base(name), LoraConfig(r=8, target_modules="all-linear"))
    assert saved_bytes(adapted(base(name))) < saved_bytes(lora.base_model.model) / 2


@EVERY_MODEL
def test_from_the_second_step_on_everything_has_a_gradient(name: str) -> None:
    model = adapted(base(name))
    optimizer = torch.optim.SGD(ladder(model).parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    assert all(float(parameter.grad.norm()) > 0 for parameter in ladder(model).parameters())  # type: ignore[union-attr]


def side_of(model: nn.Module, index: int, alpha: float) -> Tensor:
    """Returns what a rung makes of two different side states, as their distance, under a gate that is set."""
    rung: Any = ladder(model).rungs[index]
    with torch.no_grad():
        rung.alpha.fill_(alpha)
        hidden = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0))
        found: Tensor = (rung(torch.ones(1, 1, 8), hidden) - rung(-torch.ones(1, 1, 8), hidden)).norm()
    return found


def test_a_gate_begins_half_open_and_chooses_between_the_base_and_the_rung_below() -> None:
    model = adapted(base("llama"))
    assert not any(rung.alpha.any() for rung in ladder(model).rungs)  # type: ignore[operator]
    assert float(side_of(model, 1, 10.0)) == 0  # of the base alone
    assert float(side_of(model, 1, 0.0)) > 0


def test_the_side_network_is_an_eighth_as_wide_as_the_base() -> None:
    assert ladder(adapted(base("llama"))).up.in_features == 8
    assert ladder(adapted(base("llama"), reduction_factor=4)).up.in_features == 16


def test_what_stands_behind_a_token_does_not_change_it() -> None:
    model: Any = stir(adapted(base("llama")))
    with torch.no_grad():
        whole, part = model(input_ids=IDS).logits[:, :7], model(input_ids=IDS[:, :7]).logits
    assert torch.allclose(whole, part, atol=1e-5)


def test_a_copy_climbs_a_ladder_of_its_own() -> None:
    model: Any = stir(adapted(base("llama")))
    twin: Any = copy.deepcopy(model)
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits
        ladder(twin).up.weight.zero_()
        assert torch.equal(model(input_ids=IDS).logits, wanted)
        assert torch.equal(twin(input_ids=IDS).logits, base("llama")(input_ids=IDS).logits)


def test_an_interrupted_forward_pass_leaves_nothing_behind() -> None:
    model: Any = stir(adapted(base("llama")))
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits
        with pytest.raises(IndexError):
            model(input_ids=torch.tensor([[999]]))
        assert torch.equal(model(input_ids=IDS).logits, wanted)


def test_of_an_encoder_decoder_it_stands_beside_the_decoder() -> None:
    model: Any = stir(adapted(base("t5")))
    with torch.no_grad():
        encoded = model.encoder(input_ids=IDS).last_hidden_state
        assert torch.equal(encoded, base("t5").encoder(input_ids=IDS).last_hidden_state)  # type: ignore[operator]


def test_a_reduction_beyond_the_width_is_refused_with_the_width() -> None:
    with pytest.raises(RecipeError, match="64 wide") as error:
        adapted(base("llama"), reduction_factor=65)
    assert error.value.problems[0].allowed == "1 to 64"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: AlbertModel(AlbertConfig(vocab_size=40, embedding_size=16, **SIZES)), "more than once"),
        (lambda: nn.Linear(3, 3), "no stack of transformer blocks"),
    ],
)
def test_models_without_a_ladder_are_refused(make: Any, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        adapted(make())


def test_the_ladder_can_be_built_without_values() -> None:
    with torch.device("meta"):
        model = MODELS["t5"]().requires_grad_(False)
    LadderSide(LadderSideOptions(name="ladder-side")).adapt(model, CONTEXT)
    assert isinstance(ladder(model), Ladder)
    assert all(parameter.is_meta for parameter in ladder(model).parameters())
