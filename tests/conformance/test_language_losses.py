"""The losses of language modelling: transformers' own, summed; the same however a batch is cut or packed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tiny
import torch
from texts import DATA, TEXTS, config, rows, source, tokenizer
from torch import Tensor, nn

from adaptkit.data.packing import collate_packed, pack
from adaptkit.errors import DataError
from adaptkit.models.language.model import label_logits, load_language_model
from adaptkit.task import Features
from adaptkit.tasks._language import LanguageTask
from adaptkit.tasks.causal_lm import CausalLM, CausalLMOptions
from adaptkit.tasks.masked_lm import MaskedLM, MaskedLMOptions
from adaptkit.tasks.span_corruption import SpanCorruption, SpanCorruptionOptions

CAUSAL = ("gpt2", "llama")
EVERY_MODEL = pytest.mark.parametrize("manner", [*CAUSAL, "bert", "t5"])
TOLERANCE = 2e-6


def task(manner: str, **options: Any) -> LanguageTask[Any]:
    options = {"block": 24, "join": False, **options}
    if manner == "bert":
        return MaskedLM(MaskedLMOptions(name="masked-lm", **options))
    if manner == "t5":
        return SpanCorruption(SpanCorruptionOptions(name="span-corruption", **options))
    return CausalLM(CausalLMOptions(name="causal-lm", **options))


def features(subject: LanguageTask[Any], manner: str, *texts: str) -> list[Features]:
    drawn = subject.features(rows(*(texts or TEXTS)), DATA, tokenizer(manner), 128)
    return [subject.vary(feature, Random(f"0/{index}")) for index, feature in enumerate(drawn)]


def model(subject: LanguageTask[Any], manner: str) -> Any:
    return subject.load_base(source(manner), tiny.numerics(), 0).module.eval()


def gradient(subject: LanguageTask[Any], module: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Returns the gradient of an effective batch as the loop computes it."""
    module.zero_grad()
    count = sum(subject.count(batch) for batch in batches)
    for batch in batches:
        (subject.loss(module, batch).total / count).backward()
    return torch.cat([weights.grad.flatten() for weights in module.parameters() if weights.grad is not None])


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / one.norm())


@EVERY_MODEL
def test_the_summed_loss_is_the_mean_of_transformers_times_the_count(manner: str) -> None:
    subject = task(manner)
    module = model(subject, manner)
    batch = subject.collate(features(subject, manner), tokenizer(manner))
    total, count = subject.loss(module, batch).total, subject.count(batch)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total / count, module(**batch).loss, rtol=1e-5, atol=0)


@EVERY_MODEL
def test_the_gradient_does_not_depend_on_the_cut_into_micro_batches(manner: str) -> None:
    subject = task(manner)
    module = model(subject, manner)
    every = features(subject, manner)
    assert len({len(feature["input_ids"]) for feature in every}) > 1, "there is to be padding, and of rows alone none"
    whole = gradient(subject, module, [subject.collate(every, tokenizer(manner))])
    for size in (1, 3):
        cuts = [every[begin : begin + size] for begin in range(0, len(every), size)]
        parts = gradient(subject, module, [subject.collate(cut, tokenizer(manner)) for cut in cuts])
        assert difference(whole, parts) <= TOLERANCE


@pytest.mark.parametrize("manner", CAUSAL)
def test_the_gradient_of_packed_blocks_is_that_of_padded_ones(manner: str) -> None:
    subject = task(manner)
    module = model(subject, manner)
    every = features(subject, manner)
    padded = subject.collate(every, tokenizer(manner))
    packed = collate_packed(pack(every, 60))
    assert len(packed["input_ids"]) < len(every)
    assert subject.count(packed) == subject.count(padded)
    assert difference(gradient(subject, module, [padded]), gradient(subject, module, [packed])) <= TOLERANCE


@EVERY_MODEL
def test_the_output_layer_runs_where_a_label_is_and_nowhere_else(manner: str) -> None:
    subject = task(manner)
    module = model(subject, manner)
    batch = subject.collate(features(subject, manner), tokenizer(manner))
    seen: list[int] = []
    module.get_output_embeddings().register_forward_hook(lambda _, inputs, output: seen.append(output[..., 0].numel()))
    subject.loss(module, batch)
    assert seen == [1, subject.count(batch)], "one row in the model's own pass, and then the labels"


class Whole(nn.Module):
    """A model whose output layer cannot be found, so that it computes all logits."""

    def __init__(self, module: Any, virtual_tokens: int = 0) -> None:
        super().__init__()
        self.module = module
        self.config = module.config
        self.virtual_tokens = virtual_tokens

    def forward(self, **inputs: Any) -> Any:
        output = self.module(**inputs)
        front = output.logits.new_zeros(len(output.logits), self.virtual_tokens, output.logits.shape[-1])
        output.logits = torch.cat([front, output.logits], dim=1)
        return output


@EVERY_MODEL
@pytest.mark.parametrize("virtual_tokens", [0, 3])
def test_logits_of_virtual_tokens_in_front_are_left_aside(manner: str, virtual_tokens: int) -> None:
    subject = task(manner)
    module = model(subject, manner)
    batch = subject.collate(features(subject, manner), tokenizer(manner))
    some, every = (label_logits(each, batch, subject.kind) for each in (module, Whole(module, virtual_tokens)))
    torch.testing.assert_close(some.logits, every.logits)
    assert torch.equal(some.labels, every.labels)


def test_prompt_tuning_learns_the_same_labels_whose_logits_come_after_the_virtual_tokens() -> None:
    from peft import PromptTuningConfig, get_peft_model

    subject = task("llama")
    batch = subject.collate(features(subject, "llama"), tokenizer("llama"))
    tuned = get_peft_model(model(subject, "llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    expected = tuned(**batch).loss * subject.count(batch)
    torch.testing.assert_close(subject.loss(tuned, batch).total, expected, rtol=1e-5, atol=0)


def test_a_mixture_of_experts_adds_the_load_of_its_routers_beside_the_count() -> None:
    import transformers

    subject = task("llama")
    batch = subject.collate(features(subject, "llama"), tokenizer("llama"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "output_router_logits": True}
    mixtral = transformers.MixtralConfig(vocab_size=len(tokenizer("llama")), **sizes, **experts)
    module = transformers.MixtralForCausalLM(mixtral).eval()
    loss = subject.loss(module, batch)
    assert loss.extra is not None
    torch.testing.assert_close(loss.total / subject.count(batch) + loss.extra, module(**batch).loss)


# -- figures -------------------------------------------------------------------------------------------


@EVERY_MODEL
def test_figures_do_not_depend_on_the_batches_and_agree_with_the_loss(manner: str) -> None:
    subject = task(manner)
    module = model(subject, manner)
    every = features(subject, manner)
    whole = subject.collate(every, tokenizer(manner))
    metrics = subject.metrics()
    with torch.no_grad():
        for begin in range(0, len(every), 3):
            metrics.update(module, subject.collate(every[begin : begin + 3], tokenizer(manner)))
        loss = subject.loss(module, whole).total.item() / subject.count(whole)
        said = label_logits(module, whole, subject.kind)
    figures = metrics.compute()
    assert figures["loss"] == pytest.approx(loss, rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    right = (said.logits.argmax(-1) == said.labels).float().mean().item()
    assert figures["token_accuracy"] == pytest.approx(right)
    assert subject.best.metric in figures


def test_the_perplexity_of_a_uniform_guess_is_the_size_of_the_vocabulary() -> None:
    subject = task("gpt2")
    module = model(subject, "gpt2")
    nn.init.zeros_(module.get_output_embeddings().weight)
    metrics = subject.metrics()
    with torch.no_grad():
        metrics.update(module, subject.collate(features(subject, "gpt2"), tokenizer("gpt2")))
    assert metrics.compute()["perplexity"] == pytest.approx(len(tokenizer("gpt2")), rel=1e-4)


def test_figures_without_a_single_label_are_an_error_not_a_zero() -> None:
    with pytest.raises(DataError, match="nothing can be measured"):
        task("gpt2").metrics().compute()


# -- new parameters ------------------------------------------------------------------------------------


@pytest.fixture
def bare_bert(tmp_path: Path) -> Path:
    """Folder of an encoder without the layers of masked language modelling."""
    from transformers import BertModel

    BertModel(config("bert")).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_new_parameters_are_those_that_the_files_lack_and_no_tied_ones(bare_bert: Path, precision: Any) -> None:
    base = load_language_model(source("bert", bare_bert), tiny.numerics(precision), 0, "masked")
    new = set(base.new_parameters)
    head = {name for name, _ in base.module.named_parameters() if name.startswith("cls.")}
    assert new == head
    assert base.module.get_output_embeddings().weight is base.module.get_input_embeddings().weight
    assert not any(name.endswith("decoder.weight") for name in new)


def test_new_weights_are_a_function_of_the_seed_alone(bare_bert: Path) -> None:
    def new(seed: int) -> dict[str, Tensor]:
        base = load_language_model(source("bert", bare_bert), tiny.numerics(), seed, "masked")
        return {name: base.module.get_parameter(name) for name in base.new_parameters}

    torch.manual_seed(5)
    one = new(0)
    torch.manual_seed(6)
    again, other = new(0), new(1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_random_base_is_a_function_of_the_seed_and_has_no_single_new_parameter() -> None:
    def weights(seed: int) -> Tensor:
        base = load_language_model(source("gpt2"), tiny.numerics(), seed, "causal")
        assert base.new_parameters == ()
        return torch.cat([parameter.flatten() for parameter in base.module.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


# -- predictions ---------------------------------------------------------------------------------------


def taught(manner: str, *texts: str, steps: int = 150, **options: Any) -> tuple[LanguageTask[Any], nn.Module]:
    """Returns a task and a model that knows some texts by heart."""
    subject = task(manner, block=100, **options)
    module = model(subject, manner)
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    drawn = subject.features(rows(*texts), DATA, tokenizer(manner), 128)
    for step in range(steps):
        varied = [subject.vary(feature, Random(f"{step}/{index}")) for index, feature in enumerate(drawn)]
        batch = subject.collate(varied, tokenizer(manner))
        optimizer.zero_grad()
        (subject.loss(module, batch).total / subject.count(batch)).backward()
        optimizer.step()
    return subject, module


def predictions(subject: LanguageTask[Any], module: nn.Module, manner: str, *prompts: str) -> list[dict[str, Any]]:
    asked = subject.features(rows(*prompts), DATA, tokenizer(manner), 128, labelled=False)
    with torch.no_grad():
        return subject.predict(module, subject.collate(asked, tokenizer(manner)))


@pytest.mark.parametrize("manner", CAUSAL)
def test_a_causal_model_continues_what_it_has_learned_and_stops_at_its_end(manner: str) -> None:
    subject, module = taught(manner, *TEXTS)
    prompts = [" ".join(text.split()[:words]) for words, text in enumerate(TEXTS, 1)]
    together = predictions(subject, module, manner, *prompts)
    assert [prompt + answer["text"] for prompt, answer in zip(prompts, together, strict=True)] == list(TEXTS)
    assert [predictions(subject, module, manner, prompt)[0] for prompt in prompts] == together


def test_a_masked_model_fills_every_mask() -> None:
    subject, module = taught("bert", *TEXTS)
    whole = tokenizer("bert").decode(tokenizer("bert")(TEXTS[1])["input_ids"], skip_special_tokens=True)
    prompts = whole.replace("that", "[MASK]"), whole.replace("his", "[MASK]").replace("him", "[MASK]")
    filled = predictions(subject, module, "bert", *prompts)
    assert filled == [{"text": whole, "fills": ["that", "that"]}, {"text": whole, "fills": ["his", "him"]}]


def test_a_span_model_fills_every_sentinel_whatever_else_is_asked() -> None:
    subject, module = taught("t5", *TEXTS, steps=30)
    prompts = "Full fathom<extra_id_0> father lies<extra_id_1> made.", "Sea-nymphs<extra_id_0> ding-dong."
    together = predictions(subject, module, "t5", *prompts)
    assert [len(row["fills"]) for row in together] == [2, 1]
    assert [predictions(subject, module, "t5", prompt)[0] for prompt in prompts] == together
    assert any(fill for row in together for fill in row["fills"])
    for prompt, row in zip(prompts, together, strict=True):
        assert "<" not in row["text"]
        assert len(row["text"]) >= len(prompt.replace("<extra_id_0>", "").replace("<extra_id_1>", ""))
