"""Every hook of adaptkit. Hooks register things and tell observers what happens; they do no work themselves.

A plugin is an installed distribution with an entry point in the group ``adaptkit`` that names a module
(or object) with functions of these names, decorated with `hookimpl`:

    from adaptkit import hookimpl

    @hookimpl
    def adaptkit_register_strategies(register):
        register(MyStrategy)

The arguments are frozen: one may be added, none is removed without a deprecation (docs/hooks.md). An
implementation takes only the arguments that it uses. Importing this module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from adaptkit.format import Format
    from adaptkit.metric import TextMetric
    from adaptkit.recipe import Recipe
    from adaptkit.strategy import JSON, Strategy
    from adaptkit.task import Task

API_VERSION = 1
hookspec = pluggy.HookspecMarker("adaptkit")
hookimpl = pluggy.HookimplMarker("adaptkit")


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step did.

    Attributes:
        step: Optimizer steps done, this one included.
        epoch: Passes over the training rows done, as a fraction.
        loss: Loss per counted unit over the whole effective batch, before the step.
        count: What the summed loss was divided by.
        tokens: Tokens of the batch that are not padding.
        learning_rate: Of the first parameter group, in this step.
        grad_norm: Global norm before clipping.
        seconds: Since the step began.
    """

    step: int
    epoch: float
    loss: float
    count: float
    tokens: int
    learning_rate: float
    grad_norm: float
    seconds: float


@dataclass
class RunInfo:
    """The run that an event is about.

    Attributes:
        recipe: With every default filled in.
        directory: The run's folder.
        total_steps: Optimizer steps of the whole run.
        is_main: Whether this process writes the files.
        state: JSON values by plugin name, saved with every checkpoint and given back on resume: the
            place for what an observer must not forget.
    """

    recipe: Recipe
    directory: Path
    total_steps: int
    is_main: bool = True
    state: dict[str, JSON] = field(default_factory=dict)


class Tracker(Protocol):
    """Shows the figures of one run. One that raises is left out for the rest of the run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the figures of an optimizer step (``train/...``) or of an evaluation after it (``eval/...``)."""

    def close(self) -> None:
        """Called once, when the run is over or interrupted."""


class Registration:
    """Called once each time that plugins are loaded, before the recipe is read. No implementation imports torch here.

    An implementation that raises leaves its plugin out, with all that it offers; the other plugins load.
    """

    @hookspec
    def adaptkit_register_strategies(self, register: Callable[[type[Strategy[Any]]], None]) -> None:
        """Offers strategies: call ``register(cls)`` for each.

        Since API version 1.
        """

    @hookspec
    def adaptkit_register_tasks(self, register: Callable[[type[Task[Any]]], None]) -> None:
        """Offers tasks: call ``register(cls)`` for each.

        Since API version 1.
        """

    @hookspec
    def adaptkit_register_formats(self, register: Callable[[type[Format]], None]) -> None:
        """Offers dataset formats: call ``register(cls)`` for each.

        Since API version 1.
        """

    @hookspec
    def adaptkit_register_optimizers(self, register: Callable[[str, Callable[..., Any]], None]) -> None:
        """Offers optimizers: ``register(name, factory)``; ``factory(groups, settings)`` returns a torch Optimizer.

        ``groups`` are torch parameter groups with their ``lr`` and ``weight_decay``; ``settings`` is the
        recipe's `TrainingSpec`. Since API version 1.
        """

    @hookspec
    def adaptkit_register_metrics(self, register: Callable[[type[TextMetric]], None]) -> None:
        """Offers figures over pairs of texts: call ``register(cls)`` for each.

        Since API version 1.
        """

    @hookspec
    def adaptkit_register_trackers(self, register: Callable[[str, Callable[[RunInfo], Tracker]], None]) -> None:
        """Offers trackers: ``register(name, factory)``; ``factory(run)`` is called when a run that names it begins.

        Since API version 1.
        """


class Events:
    """Called while a run goes on, on every process, in no promised order; observers only.

    All plugins are told, even if one raises. What an implementation raises then stops the run: after a checkpoint has
    been saved, unless the hook says otherwise.
    """

    @hookspec
    def adaptkit_train_begin(self, run: RunInfo) -> None:
        """Once in each process that trains, before its first step, resumed runs included.

        What it raises ends the run without a checkpoint: no step has been taken. Since API version 1.
        """

    @hookspec
    def adaptkit_step_end(self, run: RunInfo, record: StepRecord) -> None:
        """After every optimizer step, before the evaluation and the checkpoint that may follow it.

        Since API version 1.
        """

    @hookspec
    def adaptkit_evaluated(self, run: RunInfo, metrics: dict[str, float]) -> None:
        """After every evaluation on the evaluation rows; ``metrics`` are named ``eval/...``.

        Since API version 1.
        """

    @hookspec
    def adaptkit_checkpoint_saved(self, run: RunInfo, path: Path) -> None:
        """After a checkpoint that was due has been written and renamed into place; not after that of a run that stops.

        Since API version 1.
        """

    @hookspec
    def adaptkit_train_end(self, run: RunInfo) -> None:
        """Once, after the artifact and the results have been saved.

        What it raises is shown; the run is finished all the same. Since API version 1.
        """

    @hookspec
    def adaptkit_train_error(self, run: RunInfo, error: BaseException) -> None:
        """Once, when a run ends by an error or is interrupted.

        What it raises is only logged, and never hides that error. Since API version 1.
        """
