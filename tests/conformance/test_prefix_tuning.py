"""What prefix tuning promises, on tiny random models of every family."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForTokenClassification

from adaptkit.errors import ModelError
from adaptkit.models.attention import PrefixKV, prefixes
from adaptkit.models.base.loading import load_model
from adaptkit.models.base.source import ModelSource
from adaptkit.recipe import ModelSpec
from adaptkit.strategies.prefix_tuning import PrefixTuning, PrefixTuningOptions
from adaptkit.strategy import AdaptContext, Family

VOCAB, P = 60, 4
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
DROPOUTS = "hidden_dropout_prob attention_probs_dropout_prob attn_pdrop resid_pdrop embd_pdrop dropout_rate dropout"
NO_DROPOUT = dict.fromkeys((*DROPOUTS.split(), "attention_dropout", "activation_dropout"), 0.0)
BOTH_SIDES = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "electra": {"embedding_size": 32},
    "distilbert": {"hidden_dim": 64},
    "modernbert": {"local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 2},
    "gpt2": {},
    "llama": {"num_key_value_heads": 2},
    "t5": {"num_layers": 2, "num_decoder_layers": 2, "d_kv": 16, "d_ff": 64},
    "bart": {**BOTH_SIDES, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
}
DECODERS = ("gpt2", "llama")
ENCODER_DECODERS = ("t5", "bart")
AUTO_CLASS: dict[Family, Any] = {
    "encoder": AutoModelForTokenClassification,
    "decoder": AutoModelForCausalLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}
every_architecture = pytest.mark.parametrize("architecture", CONFIGS)


def family(architecture: str) -> Family:
    if architecture in ENCODER_DECODERS:
        return "encoder-decoder"
    return "decoder" if architecture in DECODERS else "encoder"


def build(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **SIZES, **SPECIAL_TOKENS, **NO_DROPOUT, **CONFIGS[architecture])
    model: nn.Module = AUTO_CLASS[family(architecture)].from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, device=parameter.device) * 0.05)
    return model.requires_grad_(False).eval()


def strategy(**options: Any) -> PrefixTuning:
    return PrefixTuning(PrefixTuningOptions(name="prefix-tuning", num_virtual_tokens=P, **options))


def context(architecture: str) -> AdaptContext:
    return AdaptContext(family(architecture), "any", None, (), (), None, 10, 0, "fp32")


def batch_of(architecture: str, seed: int = 0) -> dict[str, Tensor]:
    """Two rows of 5 and 9 tokens, padded to 9 on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    if architecture in ENCODER_DECODERS:
        batch["decoder_input_ids"] = torch.randint(3, VOCAB, (2, 6), generator=generator)
    return batch


def adapted(architecture: str, model: nn.Module | None = None, **options: Any) -> tuple[PrefixTuning, nn.Module]:
    tuning = strategy(**options)
    model = tuning.adapt(model or build(architecture), context(architecture))
    tuning.initialize(model, context(architecture), [batch_of(architecture, seed=1)])
    return tuning, model


def logits(model: nn.Module, batch: dict[str, Tensor], **inputs: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(**batch, **inputs).logits
    return output


def gradients(model: nn.Module, batch: dict[str, Tensor], *, checkpointing: bool) -> tuple[dict[str, Tensor], int]:
    """Returns the gradient of every parameter that has one, and how often the first prefix was used."""
    model = copy.deepcopy(model).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    uses: list[None] = []
    next(iter(prefixes(model).values())).register_forward_hook(lambda *_: uses.append(None))
    model(**batch, use_cache=False).logits.float().square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, len(uses)


@every_architecture
@pytest.mark.parametrize("init", ["activations", "random"])
def test_every_prefix_tensor_changes_the_output(architecture: str, init: str) -> None:
    _, model = adapted(architecture, init=init)
    batch = batch_of(architecture)
    before = logits(model, batch)
    for prefix in prefixes(model).values():
        for tensor in prefix.parameters():
            old = tensor.detach().clone()
            tensor.data.add_(torch.randn_like(tensor))
            assert not torch.allclose(logits(model, batch), before, atol=1e-5)
            tensor.data.copy_(old)
    assert torch.equal(logits(model, batch), before)


@every_architecture
def test_the_output_does_not_depend_on_padding(architecture: str) -> None:
    _, model = adapted(architecture)
    batch = batch_of(architecture)
    together = logits(model, batch)
    for row, length in enumerate((5, 9)):
        alone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        alone |= {name: alone[name][:, :length] for name in ("input_ids", "attention_mask")}
        real = slice(None) if architecture in ENCODER_DECODERS else slice(length)
        torch.testing.assert_close(together[row : row + 1, real], logits(model, alone), atol=1e-5, rtol=0)


@every_architecture
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_only_prefixes_get_gradients_and_checkpointing_does_not_change_them(architecture: str) -> None:
    _, model = adapted(architecture)
    batch = batch_of(architecture)
    plain, uses = gradients(model, batch, checkpointing=False)
    recomputed, uses_recomputed = gradients(model, batch, checkpointing=True)
    assert plain.keys() == {name for name, _ in model.named_parameters() if "prefix_kv" in name}
    assert all(gradient.abs().max() > 0 for gradient in plain.values())
    assert (uses, uses_recomputed) == (1, 2)
    torch.testing.assert_close(recomputed, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", DECODERS + ENCODER_DECODERS)
@pytest.mark.parametrize("masked", [True, False])
def test_a_later_token_does_not_change_an_earlier_output(architecture: str, masked: bool) -> None:
    _, model = adapted(architecture)
    batch = batch_of(architecture)
    if not masked:
        del batch["attention_mask"]
    name = "decoder_input_ids" if architecture in ENCODER_DECODERS else "input_ids"
    changed = batch | {name: batch[name].clone()}
    changed[name][:, 4] = 3 + (changed[name][:, 4] - 2) % (VOCAB - 3)
    before, after = logits(model, batch), logits(model, changed)
    torch.testing.assert_close(after[:, :4], before[:, :4], atol=1e-6, rtol=0)
    assert not torch.allclose(after[:, 4], before[:, 4], atol=1e-5)


@every_architecture
def test_a_disabled_prefix_leaves_the_base_bit_for_bit(architecture: str) -> None:
    batch = batch_of(architecture)
    base = logits(build(architecture), batch)
    tuning, model = adapted(architecture)
    with tuning.disabled(model):
        assert torch.equal(logits(model, batch), base)
    assert not torch.allclose(logits(model, batch), base, atol=1e-5)


@pytest.mark.parametrize("architecture", DECODERS + ENCODER_DECODERS)
def test_generation_with_a_cache_equals_generation_without(architecture: str) -> None:
    _, model = adapted(architecture)
    batch = {name: tensor[1:] for name, tensor in batch_of(architecture).items() if not name.startswith("decoder")}
    settings: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    cached = model.generate(**batch, **settings, use_cache=True)  # type: ignore[operator]
    assert torch.equal(cached, model.generate(**batch, **settings, use_cache=False))  # type: ignore[operator]


def test_a_rotary_prefix_acts_as_its_text_in_front_of_the_row() -> None:
    """Also the test that grouped key/value heads keep their order."""
    tuning, model = adapted("llama")
    text = batch_of("llama", seed=1)["input_ids"][:1, :P]
    row = batch_of("llama")["input_ids"][1:]
    with tuning.disabled(model):
        expected = logits(model, {"input_ids": torch.cat((text, row), dim=1)})[:, P:]
    torch.testing.assert_close(logits(model, {"input_ids": row}), expected, atol=1e-3, rtol=0)
    assert not torch.allclose(logits(build("llama"), {"input_ids": row}), expected, atol=1e-2)


def test_the_prefix_text_skips_padding_and_repeats_when_it_is_short() -> None:
    short = {"input_ids": torch.tensor([[0, 0, 7, 8, 9]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 1]])}
    tuning, padded, plain = strategy(), build("llama"), build("llama")
    for model, batch in ((padded, short), (plain, {"input_ids": torch.tensor([[7, 8, 9, 7]])})):
        tuning.initialize(tuning.adapt(model, context("llama")), context("llama"), [batch])
    torch.testing.assert_close(tuning.state(padded), tuning.state(plain), atol=0, rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_packed_rows_equal_rows_alone(architecture: str) -> None:
    _, model = adapted(architecture)
    ids = batch_of(architecture)["input_ids"][1:]
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    packed: dict[str, Tensor] = {"input_ids": ids, "position_ids": positions}
    if architecture == "bert":
        row = (positions[0] == 0).cumsum(0)
        packed["attention_mask"] = (row[:, None] == row[None, :])[None, None]
    together = logits(model, packed, **({} if architecture == "bert" else {"use_cache": False}))
    for part in (slice(0, 4), slice(4, 9)):
        torch.testing.assert_close(together[:, part], logits(model, {"input_ids": ids[:, part]}), atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_nf4_base_trains_as_a_whole_one_does(architecture: str, tmp_path: Any) -> None:
    build(architecture).save_pretrained(tmp_path)  # type: ignore[operator]
    config = AutoConfig.from_pretrained(tmp_path)
    source = ModelSource(ModelSpec(name=str(tmp_path)), config, tokenizer=None, family=family(architecture))
    base, _ = load_model(AUTO_CLASS[family(architecture)], source, tiny.numerics("nf4"))
    assert any(type(module).__name__ == "Linear4bit" for module in base.modules())
    tuning, model = adapted(architecture, base.requires_grad_(False).eval())
    assert {tensor.dtype for tensor in tuning.state(model).values()} == {torch.float32}
    plain, _ = gradients(model, batch_of(architecture), checkpointing=False)
    recomputed, uses = gradients(model, batch_of(architecture), checkpointing=True)
    assert (len(plain), uses) == (4, 2)
    assert all(gradient.abs().max() > 0 for gradient in plain.values())
    torch.testing.assert_close(recomputed, plain, atol=1e-6, rtol=0)


def test_bf16_autocast_computes_what_fp32_computes() -> None:
    _, model = adapted("llama")
    with torch.autocast("cpu", torch.bfloat16):
        low = logits(model, batch_of("llama")).float()
    torch.testing.assert_close(low, logits(model, batch_of("llama")), atol=0.1, rtol=0.1)


@every_architecture
def test_adapting_on_meta_gives_the_same_names_and_shapes(architecture: str) -> None:
    _, model = adapted(architecture)
    with torch.device("meta"):
        planned = strategy().adapt(build(architecture), context(architecture))
    shapes = {name: tensor.shape for name, tensor in strategy().state(planned).items()}
    assert all(tensor.is_meta for tensor in planned.parameters())
    assert shapes == {name: tensor.shape for name, tensor in strategy().state(model).items()}


def test_a_saved_state_gives_the_same_model() -> None:
    tuning, model = adapted("bert")
    again = tuning.adapt(build("bert"), context("bert"))
    tuning.load_state(again, tuning.state(model))
    assert torch.equal(logits(again, batch_of("bert")), logits(model, batch_of("bert")))


def test_a_copy_that_shares_the_base_leaves_the_original_alone() -> None:
    base = build("bert")
    before = logits(base, batch_of("bert"))
    shared = copy.deepcopy(base, {id(tensor): tensor for tensor in base.parameters()})
    adapted("bert", shared)
    assert torch.equal(logits(base, batch_of("bert")), before)
    assert not prefixes(base)


def test_a_model_inside_a_wrapper_is_found() -> None:
    _, model = adapted("bert", nn.ModuleDict({"backbone": build("bert")}))
    assert all(name.startswith("backbone.") for name in prefixes(model))


def test_attention_that_cannot_be_reached_is_refused() -> None:
    deberta = AutoModelForTokenClassification.from_config(AutoConfig.for_model("deberta-v2", **SIZES))
    for model in (deberta, nn.Linear(2, 2)):
        with pytest.raises(ModelError, match="cannot carry a prefix") as error:
            strategy().adapt(model, context("bert"))
        assert all((error.value.problems[0].allowed, error.value.problems[0].fix))


def test_heads_that_differ_from_the_config_are_refused() -> None:
    with pytest.raises(ModelError, match="2 key/value heads of size 8"):
        PrefixKV(4, P, 16, 16, torch.device("cpu"))(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8))


def test_a_prefix_longer_than_the_positions_is_refused() -> None:
    tuning = PrefixTuning(PrefixTuningOptions(name="prefix-tuning", num_virtual_tokens=41))
    model = tuning.adapt(build("bert"), context("bert"))
    with pytest.raises(ModelError, match="40 positions"):
        tuning.initialize(model, context("bert"), [batch_of("bert")])
