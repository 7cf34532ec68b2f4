"""Runs whose memory is planned and measured: random weights, rows of equal length, one step and an evaluation."""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptkit.memory.fakes import held_tensors
from adaptkit.memory.plan import MemoryPlan, planned_peak
from adaptkit.models.building import build_model
from adaptkit.models.precision import best_device, choose_numerics
from adaptkit.recipe import Recipe, TokenizerTraining, parse_recipe
from adaptkit.registry import Entry, Registry, load_registry
from adaptkit.strategy import Family
from adaptkit.testing.rows import TEXT
from adaptkit.training.evaluation import Evaluation
from adaptkit.training.job import Job
from adaptkit.training.loop import train_step
from adaptkit.training.preparation import Preparation, prepare
from adaptkit.training.setup import make_job

VOCABULARY = 8192
ROWS = 8
PASS = 100_000  # tokens: every step is one pass
THIRD_PARTY = ("lora-xs", "bitfit")


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        base: Architecture, as transformers calls it.
        strategy: By name.
        precision: Of the base; None: what the strategy or the device chooses.
        words: Of a row.
        training: Settings of the recipe.
    """

    base: str
    strategy: str
    precision: str | None = None
    words: int = 100
    training: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Returns what is special about it."""
        settings = [f"{key}: {value}" for key, value in self.training.items()]
        return ", ".join([f"{self.words} words", *settings])


CHECKPOINTING, SELECTIVE = {"gradient_checkpointing": True}, {"gradient_checkpointing": "selective"}
FP32 = {"compute": "fp32"}
CASES = (
    Case("llama", "lora"),
    Case("llama", "lora", words=250),
    Case("llama", "lora", words=250, training=CHECKPOINTING),
    Case("llama", "lora", words=250, training=SELECTIVE),
    Case("llama", "lora", training={"optimizer": "adamw-8bit"}),
    Case("llama", "lora", training={"packing": True}),
    Case("llama", "lora", training={"micro_batch_tokens": 256}),
    Case("llama", "full", "fp32"),
    Case("llama", "full", "fp32", training={**FP32, "optimizer": "adafactor"}),
    Case("llama", "full", "fp32", training={**FP32, "optimizer_in_backward": True, "max_grad_norm": None}),
    Case("llama", "full", "bf16", training={"optimizer": "sgd"}),
    Case("llama", "last-layers", "fp32"),
    Case("llama", "qlora"),
    Case("llama", "qlora", words=250, training=CHECKPOINTING),
    Case("llama", "prefix-tuning"),
    Case("llama", "peft:vera"),
    Case("llama", "lora-xs"),
    Case("qwen3", "lora", "int8"),
    Case("gpt2", "full", "fp32"),
    Case("gpt2", "peft:ia3"),
    Case("bert", "lora"),
    Case("bert", "full", "fp32"),
    Case("bert", "qlora"),
    Case("bert", "linear-probe"),
    Case("bert", "peft:boft"),
    Case("bert", "bitfit"),
    Case("modernbert", "lora"),
    Case("modernbert", "lora", words=250, training=CHECKPOINTING),
    Case("t5", "lora"),
    Case("t5", "full", "fp32", training=CHECKPOINTING),
)
TORCH = {"kernels": "torch"}
ON_A_GPU = (
    Case("llama", "lora", words=500, training=TORCH),
    Case("llama", "lora", words=500, training=TORCH | CHECKPOINTING),
    Case("llama", "lora", words=500, training=TORCH | {"packing": True}),
    Case("llama", "qlora", words=500, training=TORCH),
    Case("llama", "qlora", words=500, training=TORCH | SELECTIVE),
    Case("llama", "full", "fp32", words=250, training=TORCH),
    Case("llama", "lora-xs", words=250, training=TORCH),
    Case("gpt2", "full", "fp32", words=250),
    Case("bert", "lora", words=250),
    Case("modernbert", "peft:ia3", words=250),
    Case("t5", "lora", words=250),
    Case("llama", "qlora", words=500, training=CHECKPOINTING),
    Case("llama", "lora", words=500),
)
TASKS = {"bert": "text-classification", "modernbert": "masked-lm", "t5": "seq2seq"}
FAMILIES: Mapping[str, Family] = {"bert": "encoder", "modernbert": "encoder", "t5": "encoder-decoder"}


@dataclass(frozen=True)
class Measured:
    """A case, planned and measured, in bytes."""

    case: Case
    plan: MemoryPlan
    peak: int

    @property
    def error(self) -> float:
        """By what share of the measured peak the plan is above it."""
        return self.plan.peak / self.peak - 1


def measure(case: Case, folder: Path, others: Mapping[str, Any]) -> Measured:
    """Plans a case, then runs it: a step that makes the optimizer's states, then what is measured.

    Args:
        case: Which.
        folder: Where bases and rows are written.
        others: Classes of strategies that are not installed, by name.
    """
    registry = load_registry()
    registry.strategies |= {name: Entry(cls, name, "", cls.__module__) for name, cls in others.items()}
    recipe = _recipe(case, folder, registry)
    strategy, task = registry.strategy(case.strategy), registry.make_task(recipe.task)
    prepared = _prepared(recipe, strategy(recipe.strategy), task, registry)
    factory = registry.optimizer(recipe.training.optimizer)
    numerics = choose_numerics(recipe, strategy(recipe.strategy))
    plan = planned_peak(recipe, strategy(recipe.strategy), task, prepared, numerics, factory)
    gc.collect()
    chosen = strategy(recipe.strategy)
    adapted = build_model(recipe, chosen, task, prepared.source, total_steps=3)
    job = make_job(adapted, chosen, task, recipe.training, prepared.train, factory)
    train_step(job)
    gc.collect()

    def run() -> None:
        train_step(job)
        tokens = recipe.training.pass_tokens
        Evaluation(job.model, task, prepared.evaluation, prepared.source.tokenizer, numerics, tokens).figures()

    peak = _cuda_peak(run) if numerics.device.type == "cuda" else _cpu_peak(job, run)
    return Measured(case, plan, peak)


def _recipe(case: Case, folder: Path, registry: Registry) -> Recipe:
    task = TASKS.get(case.base, "causal-lm")
    rows = _rows(task, case.words, folder)
    return parse_recipe(
        {
            "model": {"name": str(_base(case.base, folder)), "precision": case.precision},
            "task": {"name": task, **({"metrics": []} if task == "seq2seq" else {})},
            "data": {"train": str(rows), "evaluation": str(rows)},
            "strategy": case.strategy,
            "training": {"learning_rate": 1e-4, "micro_batch_tokens": PASS, "gradient_checkpointing": False}
            | dict(case.training),
            "output": str(folder / "run"),
        },
        resolver=registry,
    )


def _prepared(recipe: Recipe, strategy: Any, task: Any, registry: Registry) -> Preparation:
    from adaptkit.runner import check

    splits = check(recipe, strategy, task, registry)
    return prepare(recipe, strategy, task, splits)


def _cuda_peak(run: Callable[[], None]) -> int:
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated()


def _cpu_peak(job: Job, run: Callable[[], None]) -> int:
    """Returns the most that was there at once, by what is held and the profiler's events of the allocator."""
    from torch.profiler import ProfilerActivity, profile

    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _held(job)}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    result: Any = profiler.profiler
    events = sorted(
        (event for event in result.kineto_results.events() if event.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    )
    live = highest = sum(held.values())
    for event in events:
        live += event.nbytes()
        highest = max(highest, live)
    return highest


def _held(job: Job) -> list[Tensor]:
    states = [value for state in job.optimizer.state.values() for value in state.values()]
    return [*held_tensors(job.model), *(value for value in states if isinstance(value, Tensor))]


def _rows(task: str, words: int, folder: Path) -> Path:
    path = folder / f"{task}-{words}.jsonl"
    generator = random.Random(0)
    lines = []
    for number in range(ROWS):
        text = " ".join(generator.choices(TEXT.split(), k=words))
        row = {"text": text}
        if task == "text-classification":
            row["label"] = "ab"[number % 2]
        if task == "seq2seq":
            row = {"source": text, "target": " ".join(generator.choices(TEXT.split(), k=words // 4))}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _base(name: str, folder: Path) -> Path:
    """Writes a base with random weights, unless it is there."""
    import transformers

    from adaptkit.models.base.library import quiet_transformers
    from adaptkit.models.base.tokenizers import train_tokenizer

    path = folder / name
    if path.is_dir():
        return path
    family = FAMILIES.get(name, "decoder")
    tokenizer = train_tokenizer(lambda: [TEXT], TokenizerTraining(vocab_size=480), family)
    config = transformers.AutoConfig.for_model(name, **_sizes(name), vocab_size=VOCABULARY)
    for key in ("pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"):
        setattr(config, key, getattr(tokenizer, key))
    if family == "encoder-decoder":
        config.decoder_start_token_id = tokenizer.pad_token_id
    auto: Any = {
        "encoder": transformers.AutoModelForMaskedLM,
        "decoder": transformers.AutoModelForCausalLM,
        "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
    }[family]
    with quiet_transformers():
        auto.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _sizes(name: str) -> dict[str, Any]:
    """Returns the sizes of a base: on a GPU 4 times as wide, so that its memory is not that of the libraries."""
    wide = 4 if best_device().type == "cuda" else 1
    hidden, inner, layers, positions = 256 * wide, 688 * wide, 6, 2048
    if name == "t5":
        shape = {"d_model": hidden, "d_ff": inner, "num_layers": layers, "num_heads": 4, "d_kv": hidden // 4}
        return {**shape, "feed_forward_proj": "gated-gelu"}
    if name == "gpt2":
        return {"n_embd": hidden, "n_layer": layers, "n_head": 4 * wide, "n_positions": positions}
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 4 * wide,
        "max_position_embeddings": positions,
    }
    grouped = {"num_key_value_heads": 2 * wide} if name in ("llama", "qwen3") else {}
    return sizes | grouped | ({"head_dim": 64} if name == "qwen3" else {})
