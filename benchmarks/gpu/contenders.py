"""adaptkit, Hugging Face's Trainer with PEFT, and TRL's SFTTrainer on the same random base and the same rows.

What is equal for all: the base, LoRA's rank and layers, fp32 adapters under bf16 autocast, the rows and how many share
a forward pass, the optimizer, whether activations are recomputed, no dropout, PyTorch's scaled dot product attention,
and Liger's kernels, which Trainer and TRL switch on for themselves. The peers are spared what costs memory and is not
needed: PEFT's `prepare_model_for_kbit_training`, which stores embeddings and output layer in fp32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.bases import random_base
from benchmarks.gpu.shapes import SHAPES, Shape, make_config

RANK, ALPHA, RATE = 16, 32, 1e-4


@dataclass(frozen=True)
class Work:
    """What is trained.

    Attributes:
        shape: Name of the base's shape.
        strategy: qlora, lora or full.
        rows: Sequences of a forward pass; a step is one.
        length: Tokens of a sequence.
        recompute: Whether activations are recomputed.
        optimizer: adamw or paged-adamw-8bit.
        liger: Whether Liger's kernels are used.
        steps: That are timed.
        warm_up: Steps before.
        offload: What waits in the host's memory; adaptkit alone is told.
    """

    shape: str
    strategy: str = "qlora"
    rows: int = 2
    length: int = 2048
    recompute: bool = True
    optimizer: str = "adamw"
    liger: bool = True
    steps: int = 8
    warm_up: int = 5
    offload: tuple[str, ...] = ()

    @property
    def form(self) -> Shape:
        """The base's shape."""
        return SHAPES[self.shape]

    def token_rows(self) -> list[dict[str, list[int]]]:
        """Returns as many rows as all steps take, each of random tokens that are all learned."""
        generator = torch.Generator().manual_seed(0)
        rows = (self.steps + self.warm_up) * self.rows
        vocabulary = self.form.config["vocab_size"]
        ids = torch.randint(3, vocabulary, (rows, self.length), generator=generator).tolist()
        return [{"input_ids": row, "labels": self._labels(row)} for row in ids]

    def _labels(self, row: list[int]) -> list[int]:
        """Returns the labels of a row: of a masked model one token in seven, of a seq2seq model a quarter as many."""
        if self.form.kind == "masked":
            return [token if place % 7 == 0 else -100 for place, token in enumerate(row)]
        return row[: len(row) // 4] if self.form.kind == "seq2seq" else row

    def tokens(self) -> int:
        """Returns the tokens of a step that the model reads or writes."""
        written = self.length // 4 if self.form.kind == "seq2seq" else 0
        return self.rows * (self.length + written)


@dataclass
class Timing:
    """When the steps ended.

    Attributes:
        seconds: Of the steps that are timed.
        first: From an empty device to the end of the first step.
    """

    seconds: float = 0.0
    first: float = 0.0
    loss: float = 0.0


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def adaptkit(work: Work, device: torch.device, begun: float) -> Timing:
    """Trains as `adaptkit run` does between its first and its last step."""
    from adaptkit.training.loop import train_step

    job = adaptkit_job(work, device)
    timing = Timing()
    for step in range(work.warm_up + work.steps):
        if step == work.warm_up:
            synchronize(device)
            started = perf_counter()
        record = train_step(job)
        if step == 0:
            synchronize(device)
            timing.first = perf_counter() - begun
    synchronize(device)
    timing.seconds, timing.loss = perf_counter() - started, record.loss
    return timing


def adaptkit_job(work: Work, device: torch.device) -> Any:
    """Returns adaptkit's own job on the random base, before its first step."""
    from adaptkit.models.base.source import ModelSource
    from adaptkit.models.building import build_model
    from adaptkit.recipe import parse_recipe
    from adaptkit.registry import load_registry
    from adaptkit.task import BaseModel
    from adaptkit.training.setup import make_job

    registry = load_registry()
    recipe = parse_recipe(_recipe(work), resolver=registry)
    strategy = registry.strategy(recipe.strategy.name)(recipe.strategy)
    task: Any = registry.make_task(recipe.task)
    config, tokenizer = make_config(work.form), make_tokenizer()
    family: Any = {"causal": "decoder", "masked": "encoder", "seq2seq": "encoder-decoder"}[work.form.kind]
    source = ModelSource(recipe.model, config, tokenizer, family)
    task.tokenizer = tokenizer
    nf4 = work.strategy == "qlora"
    dtype = torch.float32 if work.strategy == "full" else torch.bfloat16
    module = random_base(work.form, device, nf4=nf4, dtype=dtype)
    precision: Any = recipe.model.precision
    base = BaseModel(module, tokenizer, family, precision)
    adapted = build_model(recipe, strategy, task, source, total_steps=work.steps + work.warm_up, base=base)
    factory = registry.optimizer(recipe.training.optimizer)
    return make_job(adapted, strategy, task, recipe.training, work.token_rows(), factory)


def _recipe(work: Work) -> dict[str, Any]:
    low_rank = {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0}
    tasks = {"causal": "causal-lm", "masked": "masked-lm", "seq2seq": "seq2seq"}
    return {
        "model": {"name": work.form.model_type, "precision": _precision(work)},
        "task": tasks[work.form.kind],
        "data": {"train": "unused.jsonl", "max_length": work.length},
        "strategy": {"name": work.strategy, **(low_rank if work.strategy != "full" else {})},
        "training": {
            "max_steps": work.steps + work.warm_up,
            "effective_batch": work.rows,
            "micro_batch_tokens": work.rows * work.tokens() // work.rows,
            "learning_rate": RATE,
            "optimizer": work.optimizer,
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup": 0.0,
            "gradient_checkpointing": work.recompute,
            "offload": list(work.offload),
            "compute": "bf16",
            "kernels": "auto" if work.liger else "torch",
        },
        "output": "unused",
    }


def _precision(work: Work) -> str:
    return {"qlora": "nf4", "full": "fp32"}.get(work.strategy, "bf16")


def hf_trainer(work: Work, device: torch.device, begun: float) -> Timing:
    """Hugging Face's Trainer around a PEFT model."""
    from transformers import Trainer, TrainingArguments, default_data_collator

    model = _peft_model(work, device) if work.strategy != "full" else _base_of_peer(work, device)
    with tempfile.TemporaryDirectory() as folder:
        clock = _clock(work, device, begun)
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**_arguments(work, folder, device)),
            train_dataset=_dataset(work),
            data_collator=default_data_collator,
            callbacks=[clock],
        )
        trainer.train()
    return clock.timing  # type: ignore[no-any-return]


def trl_offloading(work: Work, device: torch.device, begun: float) -> Timing:
    """TRL's SFTTrainer with activations in the host's memory."""
    return trl_sft(work, device, begun, activation_offloading=True)


def trl_sft(work: Work, device: torch.device, begun: float, **more: Any) -> Timing:
    """TRL's SFTTrainer, which wraps the model in PEFT itself."""
    from trl import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as folder:
        clock = _clock(work, device, begun)
        arguments = _arguments(work, folder, device) | {
            "max_length": work.length,
            "packing": False,
            "dataset_kwargs": {"skip_prepare_dataset": True},
            **more,
        }
        trainer = SFTTrainer(
            model=_base_of_peer(work, device),
            args=SFTConfig(**arguments),
            train_dataset=_dataset(work),
            processing_class=make_tokenizer(),
            peft_config=_lora_config(work) if work.strategy != "full" else None,
            callbacks=[clock],
        )
        trainer.train()
    return clock.timing  # type: ignore[no-any-return]


CONTENDERS: Mapping[str, Callable[[Work, torch.device, float], Timing]] = {
    "adaptkit": adaptkit,
    "HF Trainer + PEFT": hf_trainer,
    "TRL SFTTrainer": trl_sft,
    "TRL SFTTrainer + offloading": trl_offloading,
}


def _base_of_peer(work: Work, device: torch.device) -> nn.Module:
    dtype = torch.float32 if work.strategy == "full" else torch.bfloat16
    return random_base(work.form, device, nf4=work.strategy == "qlora", dtype=dtype)


def _peft_model(work: Work, device: torch.device) -> nn.Module:
    from peft import get_peft_model

    model = _base_of_peer(work, device).requires_grad_(False)
    adapted: nn.Module = get_peft_model(model, _lora_config(work))
    if work.recompute:
        adapted.enable_input_require_grads()  # type: ignore[operator]
    return adapted


def _lora_config(work: Work) -> Any:
    from peft import LoraConfig

    kinds = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}
    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type=kinds.get(work.form.kind))


def _arguments(work: Work, folder: str, device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    optimizers = {"adamw": "adamw_torch_fused", "paged-adamw-8bit": "paged_adamw_8bit"}
    return {
        "output_dir": folder,
        "max_steps": work.steps + work.warm_up,
        "per_device_train_batch_size": work.rows,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": optimizers[work.optimizer],
        "bf16": True,
        "use_cpu": not cuda,
        "gradient_checkpointing": work.recompute,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if work.recompute else None,
        "use_liger_kernel": work.liger and cuda,
        "save_strategy": "no",
        "logging_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": cuda,
        "seed": 0,
    }


def _dataset(work: Work) -> Any:
    from datasets import Dataset

    return Dataset.from_list(work.token_rows())


def _clock(work: Work, device: torch.device, begun: float) -> Any:
    """Returns a callback of Trainer that takes the times."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        timing = Timing()

        def on_step_end(self, _: Any, state: Any, *arguments: Any, **more: Any) -> None:
            if state.global_step in (1, work.warm_up, work.warm_up + work.steps):
                synchronize(device)
            if state.global_step == 1:
                self.timing.first = perf_counter() - begun
            if state.global_step == work.warm_up:
                self.started = perf_counter()
            if state.global_step == work.warm_up + work.steps:
                self.timing.seconds = perf_counter() - self.started

    return Clock()


def make_tokenizer() -> Any:
    """Returns a tokenizer of a few words: the rows are token ids already."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(("<pad>", "<s>", "</s>", "<unk>", "<mask>"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
