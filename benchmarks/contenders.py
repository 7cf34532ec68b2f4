"""Four ways to train the same LoRA on the same rows, each timed from its first step to its last.

What is equal for all: the base and its native classification head, fp32, LoRA on every linear layer of the
encoder, AdamW without weight decay, a linear schedule, gradient clipping, the rows of a block, the rows of
an optimizer step (32) and the number of steps. Tokenisation is done before and counts for nobody. What
differs is what is measured: the loop around the model, and how rows are cut into forward passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from adaptkit.models.base.source import max_length, open_source
from adaptkit.models.building import build_model
from adaptkit.recipe import Recipe
from adaptkit.registry import load_registry
from adaptkit.runner import check, choose, resolve
from adaptkit.task import Features
from adaptkit.training.batches import TrainingBatches, total_steps
from adaptkit.training.job import Job
from adaptkit.training.loop import training_steps
from adaptkit.training.setup import make_job
from benchmarks.floor import synchronize

RECIPE = "recipes/movie-reviews.yaml"
EQUAL_FOR_ALL: dict[str, Any] = {
    "task.pooling": "native",
    "model.precision": "fp32",
    "strategy.name": "lora",
    "training.compute": "fp32",
    "training.epochs": 1,
    "training.weight_decay": 0.0,
    "training.warmup": 0.0,
}


class Contender(Protocol):
    """Trains when it is told to.

    Attributes:
        name: In the table.
        batching: How it cuts an optimizer step into forward passes, in words.
        padded_tokens: Tokens that went through the model so far, padding included.
    """

    name: str
    batching: str
    padded_tokens: int

    def train(self, steps: range) -> float:
        """Trains on the rows of these optimizer steps and returns the seconds."""


@dataclass(frozen=True)
class Workload:
    """What is trained on what.

    Attributes:
        recipe: With every default filled in.
        labels: How many.
        tokenizer: Of the base, for padding.
        features: Of the rows, tokenised.
        batches: Say which rows an optimizer step sees.
        job: adaptkit's, before its first step.
    """

    recipe: Recipe
    labels: int
    tokenizer: Any
    features: Sequence[Features]
    batches: TrainingBatches
    job: Job

    def rows(self, steps: range) -> list[Features]:
        """Returns the rows of these optimizer steps."""
        return [self.features[index] for step in steps for index in self.batches.rows_at(step)]


def make_workload(rows: int, overrides: Mapping[str, Any] | None = None) -> Workload:
    """Returns adaptkit's own run of the recipe, on its first `rows` rows."""
    registry = load_registry()
    recipe = resolve(RECIPE, {**EQUAL_FOR_ALL, **(overrides or {})}, registry)
    strategy, task = choose(recipe, registry)
    train = check(recipe, strategy, task, registry).train[:rows]
    source = open_source(recipe.model)
    features = task.features(train, recipe.data, source.tokenizer, max_length(recipe, source))
    steps = total_steps(len(features), recipe.training)
    adapted = build_model(recipe, strategy, task, source, total_steps=steps)
    base = adapted.base
    factory = registry.optimizer(recipe.training.optimizer)
    job = make_job(adapted, strategy, task, recipe.training, features, factory)
    batches = TrainingBatches(features, task, base.tokenizer, recipe.training)
    return Workload(recipe, len(task.state()["labels"]), base.tokenizer, features, batches, job)


class Adaptkit:
    """The loop of `adaptkit run`, collating included."""

    name = "adaptkit"

    def __init__(self, work: Workload) -> None:
        self.batching = f"at most {work.recipe.training.micro_batch_tokens:,} tokens, rows of similar length"
        self.padded_tokens = 0
        self._job, self._batches = work.job, work.batches

    def train(self, steps: range) -> float:
        """Trains on the rows of these optimizer steps and returns the seconds."""
        self._job.step = steps.start
        started = perf_counter()
        for _ in islice(training_steps(self._job), len(steps)):
            pass
        synchronize()
        seconds = perf_counter() - started
        self.padded_tokens += sum(_padded(self._batches.at(step)) for step in steps)
        return seconds


class BareLoop:
    """Plain PEFT and plain PyTorch over the batches of adaptkit, which it is even given ready-made."""

    name = "bare PyTorch loop"
    batching = "the same batches"

    def __init__(self, work: Workload) -> None:
        settings: Any = work.recipe.training
        self.padded_tokens = 0
        self.model = peft_model(work)
        self._batches = work.batches
        self._device = work.job.accelerator.device
        self._max_norm = settings.max_grad_norm
        self._trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trainable, lr=settings.learning_rate, weight_decay=0.0, fused=True)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: max(0.0, 1 - step / work.job.total_steps)
        )

    def train(self, steps: range) -> float:
        """Trains on the rows of these optimizer steps and returns the seconds."""
        effective_batches = [self._batches.at(step) for step in steps]
        started = perf_counter()
        for micro_batches in effective_batches:
            rows = sum(len(batch["labels"]) for batch in micro_batches)
            for batch in micro_batches:
                inputs = {name: tensor.to(self._device) for name, tensor in batch.items()}
                labels = inputs.pop("labels")
                logits = self.model(**inputs).logits
                torch.autograd.backward(nn.functional.cross_entropy(logits, labels, reduction="sum") / rows)
            nn.utils.clip_grad_norm_(self._trainable, self._max_norm)
            self._optimizer.step()
            self._optimizer.zero_grad()
            self._schedule.step()
        synchronize()
        seconds = perf_counter() - started
        self.padded_tokens += sum(map(_padded, effective_batches))
        return seconds


class HFTrainer:
    """Hugging Face's Trainer around the same PEFT model, with a fresh Trainer for each block of steps.

    Args:
        work: What is trained on what.
        rows: A forward pass; gradients are accumulated up to the effective batch. Trainer's default is 8.
    """

    def __init__(self, work: Workload, rows: int) -> None:
        passes = work.recipe.training.effective_batch // rows
        self.name = "HF Trainer + PEFT" + (", its default batching" if rows == 8 else f", {rows} rows")
        self.batching = f"{rows} random rows" + (f", {passes} passes" if passes > 1 else "")
        self.padded_tokens = 0
        self._work, self._rows, self._passes = work, rows, passes
        self.model = peft_model(work)

    def train(self, steps: range) -> float:
        """Trains on the rows of these optimizer steps and returns the seconds between Trainer's own events."""
        from transformers import Trainer
        from transformers.trainer_callback import PrinterCallback

        clock = _Clock()
        with TemporaryDirectory() as folder:
            trainer = Trainer(
                model=self.model,
                args=self._arguments(folder, len(steps)),
                train_dataset=self._work.rows(steps),
                data_collator=self._collate,
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return clock.seconds

    def _arguments(self, folder: str, steps: int) -> Any:
        from transformers import TrainingArguments

        return TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=self._rows,
            gradient_accumulation_steps=self._passes,
            learning_rate=self._work.recipe.training.learning_rate,
            use_cpu=self._work.job.accelerator.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=self._work.job.accelerator.device.type == "cuda",
        )

    def _collate(self, rows: Sequence[Features]) -> Any:
        from transformers import DataCollatorWithPadding

        batch = DataCollatorWithPadding(self._work.tokenizer)(list(rows))
        self.padded_tokens += batch["input_ids"].numel()
        return batch


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Times what lies between the first step and the last."""

    seconds = 0.0

    def on_train_begin(self, *arguments: Any, **more: Any) -> None:
        self._started = perf_counter()

    def on_train_end(self, *arguments: Any, **more: Any) -> None:
        synchronize()
        self.seconds = perf_counter() - self._started


def peft_model(work: Workload) -> nn.Module:
    """Returns the base under PEFT, as PEFT's own guides build it, with the weights that adaptkit's run begins with."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    options: Any = work.recipe.strategy
    torch.manual_seed(work.recipe.training.seed)
    base = AutoModelForSequenceClassification.from_pretrained(
        work.recipe.model.name, num_labels=work.labels, dtype=torch.float32
    )
    config = LoraConfig(r=options.r, lora_alpha=options.lora_alpha, target_modules="all-linear", task_type="SEQ_CLS")
    torch.manual_seed(work.recipe.training.seed)
    model: nn.Module = get_peft_model(base, config)
    return model.to(work.job.accelerator.device).train()


def _padded(micro_batches: Sequence[Mapping[str, Tensor]]) -> int:
    return sum(batch["input_ids"].numel() for batch in micro_batches)
