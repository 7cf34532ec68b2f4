"""The paper's own properties: a rotation that stays one, edits in its subspace, at the first and last positions."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from adaptkit_loreft import LoReFT, LoReFTOptions
from adaptkit_loreft.layers import Edit, Positions, edits
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from adaptkit import AdaptContext
from adaptkit.errors import ModelError, RecipeError

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
LLAMA = LlamaConfig(vocab_size=40, num_key_value_heads=2, pad_token_id=0, **SIZES)
IDS = torch.arange(1, 21).view(2, 10)
MODELS: Mapping[str, Any] = {
    "encoder": lambda: BertModel(BertConfig(vocab_size=40, **SIZES)),
    "writing decoder": lambda: LlamaForCausalLM(LLAMA),
    "reading decoder": lambda: LlamaForSequenceClassification(LLAMA),
    "encoder-decoder": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=64, num_layers=3, num_heads=4, d_kv=16, d_ff=128, decoder_start_token_id=0)
    ),
}


def context(name: str) -> AdaptContext:
    return AdaptContext(
        family=name.rpartition(" ")[2],  # type: ignore[arg-type]
        task="some-task",
        peft_task_type=None,
        head_modules=("score",) if name == "reading decoder" else (),
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


def adapted(name: str, model: nn.Module | None = None, **options: Any) -> nn.Module:
    """Returns a model as it is when a run begins."""
    strategy = LoReFT(LoReFTOptions(name="loreft", **options))
    model = strategy.adapt(base(name) if model is None else model, context(name))
    strategy.initialize(model, context(name), [])
    return model


def stir(model: nn.Module) -> nn.Module:
    """Moves everything that trains, as a long training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for edit in edits(model).values():
            for parameter in edit.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def positions(model: nn.Module) -> Positions:
    return next(module for module in model.modules() if isinstance(module, Positions))


def edited(model: Any, **inputs: Any) -> list[list[int]]:
    """Returns the numbers of the tokens that a forward pass edits, by row."""
    with torch.no_grad():
        model(**inputs)
    places = positions(model)._places
    assert places is not None
    return [row.nonzero().flatten().tolist() for row in places]


# -- the edit ------------------------------------------------------------------------------------------


def test_the_rows_of_r_are_orthonormal_however_far_training_moved_them() -> None:
    model = adapted("writing decoder", r=6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(20):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for edit in edits(stir(model)).values():
        rotation = edit.rotation().detach()
        assert torch.allclose(rotation @ rotation.T, torch.eye(6), atol=1e-5)


def test_the_edit_is_the_papers_formula_and_stays_in_the_subspace() -> None:
    (edit, *_) = edits(stir(adapted("encoder"))).values()
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        rotation = edit.rotation()
        wanted = hidden + (hidden @ edit.source.T + edit.bias - hidden @ rotation.T) @ rotation
        change = edit(hidden) - hidden
    assert torch.allclose(hidden + change, wanted, atol=1e-5)
    assert torch.allclose(change @ rotation.T @ rotation, change, atol=1e-5)
    assert int(torch.linalg.matrix_rank(change, atol=1e-3)) == 4


def test_in_the_subspace_the_hidden_state_becomes_wh_plus_b() -> None:
    (edit, *_) = edits(stir(adapted("encoder"))).values()
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found, wanted = edit(hidden) @ edit.rotation().T, hidden @ edit.source.T + edit.bias
    assert torch.allclose(found, wanted, atol=1e-4)


def test_at_the_start_nothing_is_edited_and_everything_has_a_gradient() -> None:
    model = adapted("encoder")
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    found = model(**inputs).last_hidden_state
    assert torch.equal(found, base("encoder")(**inputs).last_hidden_state)
    (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    for edit in edits(model).values():
        assert all(float(parameter.grad.norm()) > 0 for parameter in edit.parameters())  # type: ignore[union-attr]


def test_every_block_begins_with_a_subspace_of_its_own() -> None:
    one, other, _ = (edit.rotation().detach() for edit in edits(adapted("encoder")).values())
    assert float((one @ other.T).abs().max()) < 0.9


def test_a_step_of_the_basis_along_itself_changes_nothing() -> None:
    (edit, *_) = edits(stir(adapted("encoder"))).values()
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = edit(hidden)
        edit.basis.mul_(0.5)
        assert torch.allclose(edit(hidden), before, atol=1e-5)


# -- the positions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["encoder", "reading decoder"])
def test_rows_are_edited_at_their_first_and_last_tokens_wherever_the_padding_is(name: str) -> None:
    model = adapted(name, first=2, last=3)
    mask = torch.tensor([[1] * 10, [1] * 7 + [0] * 3])
    assert edited(model, input_ids=IDS, attention_mask=mask) == [[0, 1, 7, 8, 9], [0, 1, 4, 5, 6]]
    assert edited(model, input_ids=IDS, attention_mask=mask.flip(1)) == [[0, 1, 7, 8, 9], [3, 4, 7, 8, 9]]
    assert edited(model, input_ids=IDS) == [[0, 1, 7, 8, 9]] * 2


def test_a_short_row_is_edited_once_everywhere() -> None:
    model = adapted("encoder", first=4, last=4)
    mask = torch.tensor([[1] * 5 + [0] * 5, [1] + [0] * 9])
    assert edited(model, input_ids=IDS, attention_mask=mask) == [[0, 1, 2, 3, 4], [0]]


def test_packed_rows_are_edited_at_the_beginning_of_each() -> None:
    model = adapted("writing decoder", first=2)
    packed = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 0], [*range(9), 0]])
    assert edited(model, input_ids=IDS, position_ids=packed) == [[0, 1, 6, 7, 9], [0, 1, 9]]


def generated(model: Any, *, masked: bool, cache: bool) -> tuple[Tensor, list[int]]:
    """Returns what a model writes, and how many tokens each of its forward passes edits."""
    counts: list[int] = []
    find = positions(model).find
    handle = model.model.register_forward_hook(lambda *_: counts.append(int(find.__self__._places.sum())))  # type: ignore[attr-defined]
    ids = IDS.clone()
    if masked:
        ids[0, :4] = 0
    mask = (ids != 0).long()
    with torch.no_grad():
        new = model.generate(
            ids, attention_mask=mask, max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=cache
        )
    handle.remove()
    return new, counts


@pytest.mark.parametrize("masked", [False, True])
def test_what_a_decoder_writes_is_not_edited_with_a_cache_or_without(masked: bool) -> None:
    model = stir(adapted("writing decoder", first=3))
    cached, with_cache = generated(model, masked=masked, cache=True)
    whole, without = generated(model, masked=masked, cache=False)
    assert torch.equal(cached, whole)
    assert with_cache == [6, 0, 0, 0, 0, 0]
    assert without == [6] * 6


def test_a_prompt_shorter_than_the_first_positions_is_edited_into_what_follows_either_way() -> None:
    model = stir(adapted("writing decoder", first=12))
    cached, with_cache = generated(model, masked=False, cache=True)
    whole, _ = generated(model, masked=False, cache=False)
    assert torch.equal(cached, whole)
    assert with_cache == [20, 2, 2, 0, 0, 0]


def test_gpt2_counts_the_cache_where_nobody_else_does() -> None:
    torch.manual_seed(0)
    model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=64, n_layer=2, n_head=4, n_positions=32))
    model = stir(adapted("writing decoder", model.eval().requires_grad_(False), first=3))
    with torch.no_grad():
        whole = model(input_ids=IDS, use_cache=False).logits[:, -1]
        cache = model(input_ids=IDS[:, :2], use_cache=True).past_key_values
        part = model(input_ids=IDS[:, 2:], past_key_values=cache, use_cache=True).logits[:, -1]
    assert torch.allclose(whole, part, atol=1e-5)


def test_of_an_encoder_decoder_the_encoder_is_edited() -> None:
    model = adapted("encoder-decoder")
    assert {name.partition(".")[0] for name in edits(model)} == {"encoder"}


@pytest.mark.parametrize(("name", "last"), [("encoder", 4), ("reading decoder", 4), ("writing decoder", 0)])
def test_by_default_rows_that_are_being_written_have_no_last_positions(name: str, last: int) -> None:
    assert positions(adapted(name)).last == last


def test_last_positions_of_rows_that_are_being_written_are_refused() -> None:
    with pytest.raises(RecipeError, match="no end yet") as error:
        adapted("writing decoder", last=7)
    assert error.value.problems[0].where == "strategy.last"


def test_no_positions_at_all_are_refused() -> None:
    with pytest.raises(RecipeError, match="no position is edited"):
        adapted("writing decoder", first=0)


# -- the layers ----------------------------------------------------------------------------------------


def test_only_the_named_blocks_are_edited() -> None:
    assert [name.split(".")[2] for name in edits(adapted("writing decoder", layers=[2, 0, 2]))] == ["0", "2"]


@pytest.mark.parametrize(
    ("options", "where", "allowed"),
    [({"layers": [0, 3]}, "strategy.layers", "0 to 2"), ({"r": 65}, "strategy.r", "1 to 64")],
)
def test_what_does_not_fit_the_model_is_refused_with_what_would(
    options: dict[str, Any], where: str, allowed: str
) -> None:
    with pytest.raises(RecipeError) as error:
        adapted("encoder", **options)
    assert error.value.problems[0].where == where
    assert allowed in str(error.value)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ModelError, match="no stack"):
        adapted("encoder", nn.Linear(3, 3))


def test_a_copy_is_edited_by_its_own_edits_at_its_own_positions() -> None:
    model = stir(adapted("encoder"))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        wanted = model(input_ids=IDS).last_hidden_state
        for edit in edits(twin).values():
            edit.source.copy_(edit.rotation())
            edit.bias.zero_()
        assert torch.equal(twin(input_ids=IDS[:, :3]).last_hidden_state, base("encoder")(input_ids=IDS[:, :3])[0])
        assert torch.equal(model(input_ids=IDS).last_hidden_state, wanted)


def test_the_edits_can_be_built_without_values() -> None:
    with torch.device("meta"):
        model = MODELS["encoder-decoder"]().requires_grad_(False)
    LoReFT(LoReFTOptions(name="loreft")).adapt(model, context("encoder-decoder"))
    assert all(isinstance(edit, Edit) and edit.basis.is_meta for edit in edits(model).values())
