"""One cell of the support matrix: a strategy, a family of models, a task and a storage of the base, tried out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from adaptkit.errors import ModelError, RecipeError
from adaptkit.recipe import Precision, Recipe, TokenizerTraining, parse_recipe
from adaptkit.registry import Registry, load_registry
from adaptkit.strategy import Family

WORKS, REFUSED, FAULT = "works", "refused", "fault"
FAMILIES: tuple[Family, ...] = get_args(Family)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
STEPS = 2
VOCABULARY = 480
TEXT = "the a film plot was is good great fine bad dull weak very quite and but not so they we"
WORDS = TEXT.split()
QUESTIONS = {"masked-lm": "the film was [MASK]", "span-corruption": "the film <extra_id_0> good"}
SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
ARCHITECTURES: Mapping[Family, tuple[str, dict[str, Any]]] = {
    "encoder": ("bert", {**SIZES, "max_position_embeddings": 64}),
    "decoder": ("llama", {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64}),
    "encoder-decoder": ("t5", {"d_model": 128, "num_layers": 2, "num_heads": 4, "d_kv": 32, "d_ff": 128}),
}
# Token ids of the words below, and a layer that does not train.
STRATEGY_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "last-layers": {"num_layers": 1},
    "peft:trainable-tokens": {"token_indices": list(range(70, 320))},
}
TASK_OPTIONS: Mapping[str, Mapping[str, Any]] = {"causal-lm": {"max_new_tokens": 8}}
# Under weight decay a tensor without a gradient would change nevertheless.
TRAINING = {"effective_batch": 4, "max_steps": STEPS, "compute": "fp32", "weight_decay": 0.0}
QUANTIZED_LAYERS = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}


@dataclass(frozen=True)
class Cell:
    """One combination."""

    strategy: str
    family: Family
    task: str
    precision: Precision


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        cell: Which.
        state: `WORKS`, `REFUSED` or `FAULT`.
        reason: Of a refusal or a fault.
    """

    cell: Cell
    state: str
    reason: str = ""


def all_cells(registry: Registry, strategies: Sequence[str] = ()) -> Iterator[Cell]:
    """Yields every combination; without names, of all strategies that adaptkit itself has."""
    own = registry.strategies["full"].distribution
    names = sorted(name for name, entry in registry.strategies.items() if entry.distribution == own)
    for strategy in strategies or names:
        for task in rows_by_task():
            for family in FAMILIES:
                for precision in PRECISIONS:
                    yield Cell(strategy, family, task, precision)


class Workshop:
    """Tiny bases and rows in a folder, and a run for each cell."""

    def __init__(self, folder: Path) -> None:
        self.registry: Registry = load_registry()
        self.folder = folder
        self._rows = {name: self._write(name, rows) for name, rows in rows_by_task().items()}
        self._models = {family: self._build(family) for family in ARCHITECTURES}

    def outcome(self, cell: Cell) -> Outcome:
        """Tries a cell."""
        try:
            trial = prepare_trial(self.recipe(cell), self.registry)
        except (RecipeError, ModelError) as error:
            return Outcome(cell, REFUSED, _general(error.problems[0].found, cell))
        except Exception as error:  # Of every kind: it is what the cell is to tell.
            return Outcome(cell, FAULT, _first_line(error))
        try:
            fault = trial.fault(self.folder / "adapter") or self._packed_fault(trial, cell)
        except Exception as error:  # Of every kind, as above; a refusal comes too late here.
            fault = _first_line(error)
        return Outcome(cell, FAULT if fault else WORKS, fault)

    def recipe(self, cell: Cell, **training: Any) -> Recipe:
        """Returns the recipe of a cell."""
        rows = self._rows[cell.task]
        return parse_recipe(
            {
                "model": {"name": self._models[cell.family], "precision": cell.precision},
                "task": {"name": cell.task, **TASK_OPTIONS.get(cell.task, {})},
                "data": {"train": rows, "evaluation": rows, "max_length": 48},
                "strategy": {"name": cell.strategy, **STRATEGY_OPTIONS.get(cell.strategy, {})},
                "training": {**TRAINING, **training},
                "output": str(self.folder / "run"),
            },
            resolver=self.registry,
        )

    def _packed_fault(self, trial: Trial, cell: Cell) -> str:
        """Takes one step with several rows in a sequence, where task and strategy say that they can."""
        from adaptkit.training.loop import train_step

        if not (trial.task.capabilities.packing and trial.strategy.capabilities.packing):
            return ""
        packed = prepare_trial(self.recipe(cell, packing=True), self.registry)
        return "" if train_step(packed.job).loss > 0 else "a packed step has no loss"

    def _write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    def _build(self, family: Family) -> str:
        """Writes a model with random weights and a tokenizer for its family."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

        from adaptkit.models.tokenizers import train_tokenizer

        classes: dict[Family, Any] = {
            "encoder": AutoModelForMaskedLM,
            "decoder": AutoModelForCausalLM,
            "encoder-decoder": AutoModelForSeq2SeqLM,
        }
        tokenizer = train_tokenizer(lambda: [TEXT], TokenizerTraining(vocab_size=VOCABULARY), family)
        model_type, sizes = ARCHITECTURES[family]
        config = AutoConfig.for_model(model_type, **sizes, vocab_size=VOCABULARY, initializer_range=0.1)
        for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        if family == "encoder-decoder":
            config.decoder_start_token_id = tokenizer.pad_token_id
        folder = self.folder / family
        with torch.random.fork_rng():
            torch.manual_seed(0)
            classes[family].from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)


@dataclass
class Trial:
    """A run before its first step."""

    recipe: Recipe
    registry: Registry
    task: Any
    strategy: Any
    evaluation: list[dict[str, Any]]
    adapted: Any
    job: Any

    def fault(self, folder: Path) -> str:
        """Trains, saves, loads and compares; returns what is wrong, or nothing.

        Args:
            folder: Of the adapter; an older one is replaced.
        """
        import torch

        from adaptkit.artifact.run import load
        from adaptkit.artifact.saving import save_adapter
        from adaptkit.training.loop import train_step

        model = self.job.model
        if fault := self._storage_fault(model):
            return fault
        before = [(parameter, parameter.detach().clone()) for parameter in self._adapter_parameters()]
        for _ in range(STEPS):
            train_step(self.job)
        if before and all(torch.equal(parameter, first) for parameter, first in before):
            return "its steps change nothing but the head"
        parts = {"recipe": self.recipe, "strategy": self.strategy, "task": self.task, "registry": self.registry}
        save_adapter(folder, self.adapted, **parts, data={})
        run = load(folder)
        trained, loaded = self._figures(), run.evaluate()
        if trained != loaded:
            return f"its figures are {loaded} after loading, {trained} before saving"
        question = QUESTIONS.get(self.task.name, TEXT)
        return "" if all(run.predict([question])) else "it predicts nothing"

    def _adapter_parameters(self) -> list[Any]:
        """Returns the parameters that train because of the strategy, not because the base lacks them."""
        base = self.adapted.base
        new = {base.module.get_parameter(name) for name in base.new_parameters}
        return [parameter for parameter in self.job.trainable().values() if parameter not in new]

    def _storage_fault(self, model: Any) -> str:
        precision = self.adapted.numerics.precision
        wanted = QUANTIZED_LAYERS.get(precision)
        found = {type(module).__name__ for module in model.modules()}
        return f"no layer is stored as {precision}" if wanted is not None and wanted not in found else ""

    def _figures(self) -> dict[str, float]:
        from adaptkit.training.evaluation import evaluate

        adapted, tokens = self.adapted, self.recipe.training.micro_batch_tokens
        figures: dict[str, float] = evaluate(
            self.job.model, self.task, self.evaluation, adapted.base.tokenizer, adapted.numerics, tokens
        )
        return figures


def prepare_trial(recipe: Recipe, registry: Registry) -> Trial:
    """Goes through all that a run does before its first step.

    Raises:
        AdaptkitError: As the run would.
    """
    from adaptkit.models.building import build_model
    from adaptkit.runner import check, choose, resolve
    from adaptkit.training.evaluation import eval_mode
    from adaptkit.training.preparation import prepare
    from adaptkit.training.setup import make_job

    recipe = resolve(recipe, (), registry)
    strategy, task = choose(recipe, registry)
    splits = check(recipe, strategy, task, registry)
    prepared = prepare(recipe, strategy, task, splits)
    adapted = build_model(recipe, strategy, task, prepared.source, total_steps=STEPS)
    factory = registry.optimizer(recipe.training.optimizer)
    job = make_job(adapted, strategy, task, recipe.training, prepared.train, factory)
    with eval_mode(job.model):
        strategy.initialize(job.model, adapted.context, job.batches.at(0))
    return Trial(recipe, registry, task, strategy, prepared.evaluation, adapted, job)


def rows_by_task() -> dict[str, list[dict[str, Any]]]:
    """Returns eight rows for every task, of words that the tokenizers know."""
    texts = [" ".join(WORDS[(3 * row + word) % len(WORDS)] for word in range(6 + row)) for row in range(8)]
    labels = ["good" if row % 2 else "bad" for row in range(8)]
    pairs = list(zip(texts, labels, strict=True))
    running = [{"text": text} for text in texts]
    return {
        "text-classification": [{"text": text, "label": label} for text, label in pairs],
        "token-classification": [
            {"tokens": text.split(), "tags": ["odd" if len(word) % 2 else "even" for word in text.split()]}
            for text in texts
        ],
        "causal-lm": running,
        "masked-lm": running,
        "span-corruption": running,
        "sft": [{"prompt": text, "completion": label} for text, label in pairs],
        "seq2seq": [{"source": text, "target": label} for text, label in pairs],
    }


def _general(reason: str, cell: Cell) -> str:
    """Returns the message of a refusal without the names that the cell has anyway."""
    for kind, name in (("strategy", cell.strategy), ("task", cell.task)):
        reason = reason.replace(f"the {kind} {name!r}", f"the {kind}")
    return reason.replace(f"model.precision is {cell.precision}", "model.precision is another").replace(
        f"stored as {cell.precision}", "stored that way"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
