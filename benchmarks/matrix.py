"""The support matrix: every strategy on every family, task and storage of the base, by running each cell.

    python -m benchmarks matrix [--strategies lora,qlora] [--write]

A cell is a run on a tiny model: it takes two steps, is saved, built again and loaded, and must then evaluate to the
same figures, bit for bit, and answer. It may instead be refused, by an error that a person sees before anything
trains; that error is the reason in the table. Anything else is a fault.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from adaptkit.errors import ModelError, RecipeError
from adaptkit.recipe import Precision, Recipe, TokenizerTraining, parse_recipe
from adaptkit.registry import Registry, load_registry
from adaptkit.strategy import Family
from benchmarks.report import machine, replace_block

DOCUMENT = Path("docs/support.md")
WORKS, REFUSED, FAULT = "works", "refused", "fault"
STEPS = 2
TEXT = "the a film plot was is good great fine bad dull weak very quite and but not so they we"
WORDS = TEXT.split()
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
ARCHITECTURES: Mapping[Family, tuple[str, dict[str, Any]]] = {
    "encoder": ("bert", {**SIZES, "max_position_embeddings": 64}),
    "decoder": ("llama", {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64}),
    "encoder-decoder": ("t5", {"d_model": 64, "num_layers": 2, "num_heads": 4, "d_kv": 16, "d_ff": 128}),
}
# Options without which a method has nothing to do, or not on models so small.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "last-layers": {"num_layers": 1},
    "peft:trainable-tokens": {"token_indices": [5, 6, 7]},
}


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


class Workshop:
    """Tiny bases and rows in a folder."""

    def __init__(self, folder: Path) -> None:
        self.registry: Registry = load_registry()
        self.folder = folder
        self._rows = {name: self._write(name, rows) for name, rows in _rows().items()}
        self._models = {family: self._build(family) for family in ARCHITECTURES}

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
        settings = TokenizerTraining(vocab_size=480)
        tokenizer = train_tokenizer(lambda: [TEXT], settings, family)
        model_type, sizes = ARCHITECTURES[family]
        config = AutoConfig.for_model(model_type, **sizes, vocab_size=len(tokenizer), initializer_range=0.1)
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

    def recipe(self, cell: Cell) -> Recipe:
        """Returns the recipe of a cell."""
        rows = self._rows[cell.task]
        return parse_recipe(
            {
                "model": {"name": self._models[cell.family], "precision": cell.precision},
                "task": cell.task,
                "data": {"train": rows, "evaluation": rows, "max_length": 48},
                "strategy": {"name": cell.strategy, **OPTIONS.get(cell.strategy, {})},
                "training": {"effective_batch": 4, "max_steps": STEPS, "compute": "fp32"},
                "output": str(self.folder / "run"),
            },
            resolver=self.registry,
        )


def outcome(workshop: Workshop, cell: Cell) -> Outcome:
    """Runs one cell."""
    try:
        prepared = _prepared(workshop, workshop.recipe(cell))
    except (RecipeError, ModelError) as error:
        return Outcome(cell, REFUSED, error.problems[0].found)
    except Exception as error:  # Of every kind: the table names it.
        return Outcome(cell, FAULT, f"{type(error).__name__}: {error}")
    try:
        fault = prepared.fault()
    except Exception as error:  # Of every kind: the table names it.
        fault = f"{type(error).__name__}: {error}"
    return Outcome(cell, FAULT if fault else WORKS, fault)


@dataclass
class _Prepared:
    """A run before its first step, and how to build its model once more."""

    recipe: Recipe
    registry: Registry
    task: Any
    prepared: Any
    strategy: Any
    job: Any
    adapted: Any

    def fault(self) -> str:
        """Trains, saves, loads and compares; returns what is wrong, or nothing."""
        from adaptkit.models.building import build_model
        from adaptkit.training.loop import train_step

        losses = [train_step(self.job).loss for _ in range(STEPS)]
        state = {name: tensor.clone() for name, tensor in self.strategy.state(self.job.model).items()}
        trained = self._figures(self.job.model)
        fresh = self.registry.strategy(self.recipe.strategy.name)(self.recipe.strategy)
        again = build_model(self.recipe, fresh, self.task, self.prepared.source)
        fresh.load_state(again.model, state)
        loaded = self._figures(again.model)
        if trained != loaded:
            return f"loaded it gives {loaded}, trained {trained}"
        return "" if all(loss > 0 for loss in losses) else f"its losses are {losses}"

    def _figures(self, model: Any) -> dict[str, float]:
        from adaptkit.training.evaluation import evaluate

        tokenizer = self.prepared.source.tokenizer
        rows = self.prepared.evaluation
        figures: dict[str, float] = evaluate(model, self.task, rows, tokenizer, self.adapted.numerics, 1024)
        return figures


def _prepared(workshop: Workshop, recipe: Recipe) -> _Prepared:
    """Goes through all that a run does before its first step."""
    from adaptkit.models.building import build_model
    from adaptkit.runner import check, choose, resolve
    from adaptkit.training.evaluation import eval_mode
    from adaptkit.training.preparation import prepare
    from adaptkit.training.setup import make_job

    registry = workshop.registry
    recipe = resolve(recipe, (), registry)
    strategy, task = choose(recipe, registry)
    splits = check(recipe, strategy, task, registry)
    prepared = prepare(recipe, strategy, task, splits)
    adapted = build_model(recipe, strategy, task, prepared.source, total_steps=STEPS)
    factory = registry.optimizer(recipe.training.optimizer)
    job = make_job(adapted, strategy, task, recipe.training, prepared.train, factory)
    with eval_mode(job.model):
        strategy.initialize(job.model, adapted.context, job.batches.at(0))
    return _Prepared(recipe, registry, task, prepared, strategy, job, adapted)


def _rows() -> dict[str, list[dict[str, Any]]]:
    """Returns eight rows for every task, of words that the tokenizers know."""
    texts = [" ".join(WORDS[(3 * row + word) % len(WORDS)] for word in range(6 + row)) for row in range(8)]
    labels = ["good" if row % 2 else "bad" for row in range(8)]
    chat = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": label}]
        for text, label in zip(texts, labels, strict=True)
    ]
    tags = [["odd" if len(word) % 2 else "even" for word in text.split()] for text in texts]
    running = [{"text": text} for text in texts]
    return {
        "text-classification": [{"text": t, "label": label} for t, label in zip(texts, labels, strict=True)],
        "token-classification": [{"tokens": t.split(), "tags": tag} for t, tag in zip(texts, tags, strict=True)],
        "causal-lm": running,
        "masked-lm": running,
        "span-corruption": running,
        "sft": [{"messages": messages} for messages in chat],
        "seq2seq": [{"source": t, "target": label} for t, label in zip(texts, labels, strict=True)],
    }


def cells(registry: Registry, strategies: Sequence[str] = ()) -> Iterator[Cell]:
    """Yields every combination of strategy, family, task and precision."""
    for strategy in strategies or sorted(registry.strategies):
        for task in _rows():
            for family in get_args(Family):
                for precision in get_args(Precision):
                    yield Cell(strategy, family, task, precision)


def main(arguments: list[str]) -> None:
    """Runs the cells, prints faults, and with --write replaces the table in the documentation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks matrix")
    parser.add_argument("--strategies", default="", help="names, separated by commas; default: all")
    parser.add_argument("--write", action="store_true", help=f"replace the table in {DOCUMENT}")
    options = parser.parse_args(arguments)
    chosen = [name for name in options.strategies.split(",") if name]
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        outcomes = []
        for cell in cells(workshop.registry, chosen):
            outcomes.append(outcome(workshop, cell))
            if outcomes[-1].state == FAULT:
                print(f"fault: {cell.strategy}, {cell.family}, {cell.task}, {cell.precision}: {outcomes[-1].reason}")
    text = report(outcomes)
    print(text)
    if options.write:
        replace_block("support", text, DOCUMENT)


def report(outcomes: Sequence[Outcome]) -> str:
    """Returns the table: a row a strategy, a column a task and family, in each cell the precisions that work."""
    columns = dict.fromkeys((o.cell.task, o.cell.family) for o in outcomes if o.state == WORKS)
    notes: dict[str, int] = {}
    header = ["strategy", *(f"{task}, {family}" for task, family in columns)]
    lines = [header, ["---"] * len(header)]
    for strategy in dict.fromkeys(o.cell.strategy for o in outcomes):
        row = [f"`{strategy}`"]
        for column in columns:
            here = [o for o in outcomes if o.cell.strategy == strategy and (o.cell.task, o.cell.family) == column]
            row.append(_content(here, notes))
        lines.append(row)
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    reasons = "\n".join(f"{number}. {reason}" for reason, number in notes.items())
    counts = {state: sum(o.state == state for o in outcomes) for state in (WORKS, REFUSED, FAULT)}
    total = f"{len(outcomes):,} cells: {counts[WORKS]:,} work, {counts[REFUSED]:,} are refused, {counts[FAULT]:,} fail"
    unserved = dict.fromkeys(
        (o.cell.task, o.cell.family) for o in outcomes if (o.cell.task, o.cell.family) not in columns
    )
    missing = "; ".join(f"{task} with {family} models" for task, family in unserved)
    return (
        f"{total}. Refused for every strategy: {missing}.\n\n{table}\n\n{reasons}\n\n"
        f"{machine()}; `python -m benchmarks matrix --write`."
    )


def _content(here: Sequence[Outcome], notes: dict[str, int]) -> str:
    """Returns the precisions that work, and a number for each reason why others do not."""
    works = [o.cell.precision for o in here if o.state == WORKS]
    numbers = dict.fromkeys(notes.setdefault(_general(o), len(notes) + 1) for o in here if o.state != WORKS)
    marks = "".join(f"[{number}]" for number in numbers)
    return f"{' '.join(works)} {marks}".strip()


def _general(outcome: Outcome) -> str:
    """Returns a reason without the names of the tiny model's folder."""
    reason = outcome.reason.splitlines()[0] if outcome.reason else ""
    return f"FAULT: {reason}" if outcome.state == FAULT else reason
