"""Every method of the installed PEFT runs by name as PEFT alone runs it, or is listed with the reason why not."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from adaptkit.errors import ModelError, RecipeError
from adaptkit.models.adaptation import adapt_model
from adaptkit.models.layers import norm_layers
from adaptkit.registry import load_registry
from adaptkit.strategies._peft_fields import config_fields
from adaptkit.strategy import AdaptContext, Strategy
from adaptkit.task import BaseModel, LossSum
from adaptkit.testing import NotApplicable, Subject
from adaptkit.training.job import Job
from adaptkit.training.loop import train_step

STRATEGIES = {name: entry.value for name, entry in load_registry().strategies.items() if name.startswith("peft:")}
NAMES = [f"peft:{kind.value.lower().replace('_', '-')}" for kind in PeftType]
RUNNABLE = [name for name in NAMES if name in STRATEGIES]
PROMPTS = [name for name in RUNNABLE if STRATEGIES[name].capabilities.virtual_tokens]
# What a model of hidden size 64 with 32 wide keys needs; the rest are adaptkit's defaults.
SMALL: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 6, "target_r": 2},
    "adamss": {"r": 16, "num_subspaces": 2},
    "adaption-prompt": {"adapter_len": 4, "adapter_layers": 2},
    "c3a": {"block_size": 32},
    "fourierft": {"n_frequency": 100},
    "gralora": {"r": 8},
    "randlora": {"r": 4, "randlora_alpha": 80},
    "shira": {"r": 8},
    "trainable-tokens": {"token_indices": [5, 6, 7, 8]},
    "vblora": {"vector_length": 32},
    "vera": {"r": 64},
    "waveft": {"n_frequency": 100},
    **{name: {"num_virtual_tokens": 4} for name in ("cartridge", "p-tuning", "prefix-tuning", "prompt-tuning")},
}
STEPS, SEED, VOCABULARY = 20, 3, 40
TENSORS = "adapter_model.safetensors"


class NextToken:
    """Half of each text repeats the other half, so that there is something to learn."""

    def count(self, batch: Mapping[str, Tensor]) -> float:
        return float((batch["labels"][:, 1:] != -100).sum())

    def locate(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return batch

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> LossSum:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits = model(**inputs, use_cache=None).logits[:, -batch["labels"].shape[1] :]
        return LossSum(cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"))


@cache
def pretrained() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    halves = torch.randint(1, 12, (2, 8, 7), generator=generator)
    texts = torch.cat([halves, halves], dim=2)
    labels = texts.clone()
    labels[:, :, 0] = -100  # nothing stands before it; PEFT alone would have virtual tokens predict it
    return [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": wanted}
        for ids, wanted in zip(texts, labels, strict=True)
    ]


def make(name: str, **options: Any) -> Strategy[Any]:
    cls = STRATEGIES[name]
    return cls(cls.Options(**{"name": name, **SMALL.get(name.removeprefix("peft:"), {}), **options}))


def adapted(
    strategy: Strategy[Any], module: nn.Module | None = None, seed: int = SEED, steps: int = STEPS, **context: Any
) -> nn.Module:
    module = module or copy.deepcopy(pretrained())
    known = {"family": "decoder", "peft_task_type": "CAUSAL_LM", "head_modules": (), "new_parameters": (), **context}
    torch.manual_seed(seed)
    return adapt_model(
        strategy,
        BaseModel(module, None, known["family"], "fp32"),
        AdaptContext(task="next-token", tokenizer=None, total_steps=steps, seed=seed, precision="fp32", **known),
    )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def make_job(strategy: Strategy[Any], model: nn.Module, rate: float) -> Job:
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=rate)
    cuts = batches()
    return Job(
        model=model.train(),
        wrapped=model,
        strategy=strategy,
        task=NextToken(),  # type: ignore[arg-type]
        batches=SimpleNamespace(steps_per_epoch=2, at=lambda step: [cuts[step % 2]]),
        optimizer=optimizer,
        scheduler=SimpleNamespace(step=lambda: None),  # type: ignore[arg-type]
        accelerator=SimpleNamespace(device=torch.device("cpu"), backward=lambda loss: loss.backward()),  # type: ignore
        numerics=SimpleNamespace(autocast=nullcontext),  # type: ignore[arg-type]
        total_steps=STEPS,
        max_grad_norm=None,
    )


@cache
def trained(name: str) -> tuple[Strategy[Any], nn.Module]:
    """Returns a strategy and its model after three steps; tests that change them take new ones."""
    strategy = make(name)
    model = adapted(strategy)
    job = make_job(strategy, model, strategy.learning_rate("decoder"))
    for _ in range(3):
        train_step(job)
    return strategy, model.eval()


def logits(model: nn.Module) -> Tensor:
    batch = batches()[0]
    with torch.no_grad():
        output: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return output


def task_loss(model: nn.Module) -> float:
    """Returns the mean loss in eval mode, without what a method adds to it."""
    with torch.no_grad():
        parts = [NextToken().loss(model.eval(), batch).total / NextToken().count(batch) for batch in batches()]
    model.train()
    return sum(part.item() for part in parts) / len(parts)


def test_every_method_runs_by_name_or_says_why_not() -> None:
    assert set(STRATEGIES) <= set(NAMES)
    registry = load_registry()
    for name in set(NAMES) - set(STRATEGIES):
        with pytest.raises(RecipeError, match=f"{name}' cannot be used: .*; choose ") as refused:
            registry.strategy(name)
        assert "newer than this version" not in str(refused.value)


def direct_losses(name: str, rate: float, steps: int) -> list[float]:
    """Trains with PEFT alone: `get_peft_model`, its own loss, AdamW."""
    strategy = make(name)
    kind = name.removeprefix("peft:").replace("-", "_").upper()
    values = strategy.options.model_dump(exclude={"name"})
    base = copy.deepcopy(pretrained())
    if values.get("target_modules") == "all-norms":
        values["target_modules"] = norm_layers(base)
    if kind == "ADALORA":
        values |= {"total_step": STEPS, "tinit": STEPS // 10, "tfinal": STEPS // 5}
    torch.manual_seed(SEED)
    model = get_peft_model(base, PEFT_TYPE_TO_CONFIG_MAPPING[kind](task_type="CAUSAL_LM", **values))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for step in range(steps):
        loss = model(**batches()[step % 2]).loss
        loss.backward()
        optimizer.step()
        if kind == "ADALORA":
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", RUNNABLE)
def test_it_trains_as_with_peft_alone(name: str) -> None:
    strategy = make(name)
    model = adapted(strategy)
    job = make_job(strategy, model, rate=1e-3)
    losses = [train_step(job).loss for _ in range(4)]
    assert losses == pytest.approx(direct_losses(name, 1e-3, 4), rel=1e-6)


@pytest.mark.parametrize("name", RUNNABLE)
def test_its_default_rate_learns_and_leaves_the_base_alone(name: str) -> None:
    strategy = make(name)
    module = copy.deepcopy(pretrained())
    base = {id(tensor): tensor.detach().clone() for tensor in (*module.parameters(), *module.buffers())}
    live = [*module.parameters(), *module.buffers()]
    model = adapted(strategy, module)
    trains = {id(parameter) for parameter in trainable(model).values()}
    job = make_job(strategy, model, strategy.learning_rate("decoder"))
    before = task_loss(model)
    for _ in range(STEPS):
        train_step(job)
    assert task_loss(model) < 0.99 * before
    assert all(torch.equal(tensor, base[id(tensor)]) for tensor in live if id(tensor) not in trains)


@pytest.mark.parametrize("name", RUNNABLE)
def test_its_state_makes_the_same_model_of_another_one(name: str) -> None:
    strategy, model = trained(name)
    state = {key: tensor.clone() for key, tensor in strategy.state(model).items()}
    fresh = make(name)
    other = adapted(fresh, seed=SEED + 1, steps=0).eval()  # other random numbers, and no schedule
    assert not torch.equal(logits(other), logits(model))
    fresh.load_state(other, state)
    assert torch.equal(logits(other), logits(model))


def save(strategy: Strategy[Any], model: nn.Module, folder: Path) -> str:
    """Writes what an artifact has for PEFT, and returns its folder."""
    save_file({key: tensor.contiguous() for key, tensor in strategy.state(model).items()}, folder / TENSORS)
    for file, value in strategy.adapter_files(model).items():
        (folder / file).write_text(json.dumps(value), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("name", RUNNABLE)
def test_peft_itself_loads_what_it_saves(name: str, tmp_path: Path) -> None:
    strategy, model = trained(name)
    loaded = PeftModel.from_pretrained(copy.deepcopy(pretrained()), save(strategy, model, tmp_path)).eval()
    assert torch.allclose(logits(loaded), logits(model), atol=1e-5)


@pytest.mark.parametrize("name", ["peft:lora", "peft:vera", "peft:prompt-tuning", "peft:p-tuning"])
def test_peft_loads_the_trained_head_too(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
        )
    )
    strategy = make(name)
    head = {"head_modules": ("classifier",), "new_parameters": ("classifier.weight", "classifier.bias")}
    model = adapted(strategy, copy.deepcopy(base), family="encoder", peft_task_type="SEQ_CLS", **head).eval()
    assert any("classifier.weight" in name for name in trainable(model))
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), save(strategy, model, tmp_path)).eval()
    assert torch.allclose(logits(loaded), logits(model), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in RUNNABLE if STRATEGIES[name].capabilities.can_disable])
def test_switched_off_it_is_the_base(name: str) -> None:
    strategy, model = trained(name)
    with strategy.disabled(model):
        assert torch.equal(logits(model), logits(copy.deepcopy(pretrained()).eval()))
    assert not torch.equal(logits(model), logits(copy.deepcopy(pretrained()).eval()))


@pytest.mark.parametrize("name", [name for name in RUNNABLE if STRATEGIES[name].capabilities.mergeable])
def test_merged_it_answers_the_same_without_a_layer_of_peft(name: str) -> None:
    state = trained(name)[0].state(trained(name)[1])
    strategy = make(name)
    model = adapted(strategy).eval()
    strategy.load_state(model, state)
    expected = logits(model)
    merged = strategy.merge(model).eval()
    assert not any("peft" in type(module).__module__ for module in merged.modules())
    assert torch.allclose(logits(merged), expected, atol=1e-4)


@pytest.mark.parametrize("name", PROMPTS)
def test_virtual_tokens_take_positions(name: str) -> None:
    strategy, model = trained(name)
    assert strategy.extra_positions() == 4
    assert logits(model).shape[1] - batches()[0]["input_ids"].shape[1] in (0, 4)  # 0: they are in the cache


@pytest.mark.parametrize("name", RUNNABLE)
def test_fields_read_from_the_source_are_those_of_the_config(name: str) -> None:
    method = name.removeprefix("peft:").replace("-", "_")
    config = {field.name: field for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[method.upper()])}
    read = config_fields(method)
    assert read.keys() == config.keys()
    for field, there in read.items():
        factory = config[field].default_factory
        default = config[field].default if factory is dataclasses.MISSING else factory()
        if there.type is not Any:
            assert there.default == default


def test_options_that_peft_refuses_are_named() -> None:
    with pytest.raises(RecipeError, match="schedule") as refused:
        adapted(make("peft:adalora", tinit=STEPS))
    assert "strategy.tinit" in str(refused.value)


def test_a_method_that_cannot_adapt_this_model_says_so() -> None:
    with pytest.raises(ModelError, match=r"peft:c3a cannot be applied to LlamaForCausalLM.*block size"):
        adapted(make("peft:c3a", block_size=48))


def test_a_method_that_passes_over_every_layer_of_a_model_is_refused_although_a_new_head_would_train() -> None:
    on_gpt2 = Subject(load_registry().strategy("peft:osf"), base_name="gpt2")  # whose layers are no nn.Linear
    with pytest.raises(NotApplicable, match="peft:osf cannot be applied to GPT2ForSequenceClassification"):
        on_gpt2.trial()


def test_adalora_ends_at_its_target_rank_and_resumes_to_the_same_bits() -> None:
    strategy = make("peft:adalora")
    job = make_job(strategy, adapted(strategy), rate=1e-2)
    for step in range(STEPS):
        if step == STEPS // 2:
            tensors, values = strategy.training_state()
            tensors = {key: tensor.clone() for key, tensor in tensors.items()}
            optimizer = copy.deepcopy(job.optimizer.state_dict())
            state = {key: tensor.clone() for key, tensor in strategy.state(job.model).items()}
        train_step(job)
    resumed = make("peft:adalora")
    again = make_job(resumed, adapted(resumed, seed=SEED + 1), rate=1e-2)
    resumed.load_state(again.model, state)
    resumed.load_training_state(tensors, json.loads(json.dumps(values)))
    again.optimizer.load_state_dict(optimizer)
    again.step = STEPS // 2
    while again.step < STEPS:
        train_step(again)
    ended, other = strategy.state(job.model), resumed.state(again.model)
    assert all(torch.equal(ended[key], other[key]) for key in ended)
    ranks = [int((tensor != 0).sum()) for key, tensor in ended.items() if "lora_E" in key]
    assert sum(ranks) == 2 * len(ranks)
    assert len(set(ranks)) > 1
