"""One cell of the support matrix: a strategy, a family of models, a task and a storage of the base, tried out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from adaptkit.errors import ModelError, RecipeError
from adaptkit.recipe import Precision, Recipe, parse_recipe
from adaptkit.registry import Registry, load_registry
from adaptkit.strategy import Family
from adaptkit.testing.bases import Workshop
from adaptkit.testing.rows import TASK_OPTIONS, TEXT, rows_by_task

if TYPE_CHECKING:
    from adaptkit.testing.trial import Trial

WORKS, REFUSED, FAULT = "works", "refused", "fault"
FAMILIES: tuple[Family, ...] = get_args(Family)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
STEPS = 2
QUESTIONS = {"masked-lm": "the film was [MASK]", "span-corruption": "the film <extra_id_0> good"}
BASES: Mapping[Family, str] = {"encoder": "bert", "decoder": "llama", "encoder-decoder": "t5"}
# Token ids of the words in the rows, and a layer that does not train.
STRATEGY_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "last-layers": {"num_layers": 1},
    "lisa": {"activated_layers": 1, "interval_steps": 2},
    "peft:trainable-tokens": {"token_indices": list(range(70, 320))},
}
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


class Trials:
    """A run for each cell, on tiny bases in a folder."""

    def __init__(self, folder: Path) -> None:
        self.registry: Registry = load_registry()
        self.folder = folder
        self.workshop = Workshop(folder)

    def outcome(self, cell: Cell) -> Outcome:
        """Tries a cell."""
        try:
            trial = prepare_trial(self.recipe(cell), self.registry)
        except (RecipeError, ModelError) as error:
            return Outcome(cell, REFUSED, _general(error.problems[0].found, cell))
        except Exception as error:  # Of every kind: it is what the cell is to tell.
            return Outcome(cell, FAULT, _first_line(error))
        try:
            fault = _fault(trial, self.folder / "adapter") or self._packed_fault(trial, cell)
        except Exception as error:  # Of every kind, as above; a refusal comes too late here.
            fault = _first_line(error)
        return Outcome(cell, FAULT if fault else WORKS, fault)

    def recipe(self, cell: Cell, **training: Any) -> Recipe:
        """Returns the recipe of a cell."""
        rows = self.workshop.rows(cell.task)
        return parse_recipe(
            {
                "model": {"name": self.workshop.base(BASES[cell.family]), "precision": cell.precision},
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


def prepare_trial(recipe: Recipe, registry: Registry) -> Trial:
    """Goes through all that a run does before its first step.

    Raises:
        AdaptkitError: As the run would.
    """
    from adaptkit.runner import choose
    from adaptkit.testing.trial import make_trial

    return make_trial(recipe, choose(recipe, registry)[0], registry)


def _fault(trial: Trial, folder: Path) -> str:
    """Trains, saves, loads and compares; returns what is wrong, or nothing.

    Args:
        trial: Before its first step.
        folder: Of the adapter; an older one is replaced.
    """
    import torch

    from adaptkit.artifact.run import load
    from adaptkit.artifact.saving import save_adapter

    if fault := _storage_fault(trial):
        return fault
    before = [(parameter, parameter.detach().clone()) for parameter in _adapter_parameters(trial)]
    trial.step(STEPS)
    if before and all(torch.equal(parameter, first) for parameter, first in before):
        return "its steps change nothing but the head"
    save_adapter(
        folder,
        trial.adapted,
        recipe=trial.recipe,
        strategy=trial.strategy,
        task=trial.task,
        registry=trial.registry,
        data={},
    )
    run = load(folder)
    trained, loaded = trial.evaluate(), run.evaluate()
    if trained != loaded:
        return f"its figures are {loaded} after loading, {trained} before saving"
    question = QUESTIONS.get(trial.task.name, TEXT)
    return "" if all(run.predict([question])) else "it predicts nothing"


def _adapter_parameters(trial: Trial) -> list[Any]:
    """Returns the parameters that train because of the strategy, not because the base lacks them."""
    base = trial.adapted.base
    new = {base.module.get_parameter(name) for name in base.new_parameters}
    return [parameter for parameter in trial.job.trainable().values() if parameter not in new]


def _storage_fault(trial: Trial) -> str:
    precision = trial.adapted.numerics.precision
    wanted = QUANTIZED_LAYERS.get(precision)
    found = {type(module).__name__ for module in trial.model.modules()}
    return f"no layer is stored as {precision}" if wanted is not None and wanted not in found else ""


def _general(reason: str, cell: Cell) -> str:
    """Returns the message of a refusal without the names that the cell has anyway."""
    for kind, name in (("strategy", cell.strategy), ("task", cell.task)):
        reason = reason.replace(f"the {kind} {name!r}", f"the {kind}")
    return reason.replace(f"model.precision is {cell.precision}", "model.precision is another").replace(
        f"stored as {cell.precision}", "stored that way"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
