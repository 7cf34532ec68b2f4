"""One training run from its first step to its artifact: what happens between the steps of the loop."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console

from adaptkit.artifact.folder import RunFolder
from adaptkit.artifact.merging import on_plain_model
from adaptkit.artifact.saving import save_adapter
from adaptkit.errors import CheckpointError, PluginError, Problem, RunInterruptedError, TrainingError
from adaptkit.hookspecs import RunInfo, StepRecord
from adaptkit.memory.plan import MemoryPlan
from adaptkit.memory.planner import Planner
from adaptkit.models.building import build_model
from adaptkit.recipe import Recipe
from adaptkit.registry import Registry
from adaptkit.reporting.metrics_log import MetricsLog
from adaptkit.reporting.preview import preview_lines
from adaptkit.reporting.progress import ProgressReport
from adaptkit.reporting.tracking import Trackers
from adaptkit.reporting.usage import folder_bytes, peak_comparison, peak_memory_bytes
from adaptkit.strategy import Strategy
from adaptkit.task import Splits, Task
from adaptkit.training.batches import total_steps
from adaptkit.training.best import BestStep
from adaptkit.training.checkpoint import (
    latest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    remove_leftovers,
    write_checkpoint,
)
from adaptkit.training.evaluation import Evaluation, eval_mode
from adaptkit.training.finite import STEADIER
from adaptkit.training.gradient import move
from adaptkit.training.interrupts import StopSignals
from adaptkit.training.isolation import reads_padding
from adaptkit.training.loop import training_steps
from adaptkit.training.optim import optimizer_name
from adaptkit.training.rehearsal import has_own_memory
from adaptkit.training.rng import preserved_rng
from adaptkit.training.setup import make_job, use_frozen_features
from adaptkit.training.snapshot import restore_snapshot, take_snapshot
from adaptkit.training.splitting import does_not_fit, is_out_of_memory

# What a message calls a task's state: names of labels, the text of a chat template.
LEARNED = "labels or chat template"


class Session:
    """A run in progress.

    Args:
        recipe: With every default filled in.
        registry: Fires the events.
        strategy: Adapts the model.
        task: Has been prepared.
        splits: The rows.
        planner: Has what was made of the rows, and the plan, where the recipe left something to the memory.
        data: sha256 of each source, by the name that the recipe gives it.
        folder: Claimed for this run.
        console: Where progress is reported.
        shows_rows: Whether the rows are shown as the model reads them.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        registry: Registry,
        strategy: Strategy[Any],
        task: Task[Any],
        splits: Splits,
        planner: Planner,
        data: Mapping[str, str],
        folder: RunFolder,
        console: Console,
        shows_rows: bool = True,
    ) -> None:
        self.recipe, self.registry, self.strategy, self.task = recipe, registry, strategy, task
        self.splits, self.data, self.folder, self.console = splits, data, folder, console
        self._planner = planner
        self.shows_rows = shows_rows
        self.info = RunInfo(recipe, folder.path, total_steps=0)  # known when the rows are tokenized
        self._failure: PluginError | None = None
        self._built = False
        self._planned: MemoryPlan | None = None
        self._begun, self.seconds_before, self._peak_before = time.monotonic(), 0.0, 0
        self.best = BestStep(task.best, recipe.training.early_stopping)

    def train(self, *, resume: bool = False) -> dict[str, Any]:
        """Trains, keeps the best step as the artifact, and returns the results of the run.

        Raises:
            RunInterruptedError: A signal asked for a stop; a checkpoint is saved.
            PluginError: An observer raised; a checkpoint is saved.
            TrainingError: The run cannot learn.
            FitError: It does not fit into memory, in however small micro-batches.
        """
        try:
            return self._train(resume)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise does_not_fit("the run", where=f"behind step {self.job.step}" if self._built else None) from error

    def _train(self, resume: bool) -> dict[str, Any]:
        with self.console.status("tokenizing the rows"):
            self._prepare()
        if self.shows_rows:
            self._show()
        self._plan()
        with self.console.status(f"loading {self.recipe.model.name}"):
            self._build()
        remove_leftovers(self.folder.checkpoints)
        checkpoint = latest_checkpoint(self.folder.checkpoints) if resume else None
        if checkpoint is not None:
            self._restore(checkpoint)
        else:
            self._initialize()
        self._announce()
        self._steps(rehearsals=1 if checkpoint else 2)
        return self._keep()

    # -- before the first step -----------------------------------------------------------------------

    def _prepare(self) -> None:
        """Turns the rows into features; from now on the number of steps is known."""
        self.task, self.prepared = self._planner.prepared(on_plain_model(self.recipe), self.strategy)
        self.info.total_steps = total_steps(len(self.prepared.train), self.recipe.training)

    def _show(self) -> None:
        """Shows what the model will see."""
        for line in preview_lines(self.task, self.splits, self.prepared, examples=1):
            self._print(line)

    def _plan(self) -> None:
        """Plans the peak of memory, where the device has memory of its own, to be held against the measured one."""
        if not has_own_memory(self._planner.device):
            return
        with self.console.status("planning the memory"):
            plan = self._planner.try_plan(on_plain_model(self.recipe))
        if isinstance(plan, MemoryPlan):
            self._planned = plan
        else:  # what cannot be planned can be run
            self._print(f"note: {plan.problems[0].found}")

    def _build(self) -> None:
        """Builds the adapted model and the job."""
        prepared, settings = self.prepared, self.recipe.training
        self.adapted = build_model(
            self.recipe, self.strategy, self.task, prepared.source, total_steps=self.info.total_steps
        )
        if settings.learning_rate is None:
            rate = self.strategy.learning_rate(self.adapted.base.family)
            settings = settings.model_copy(update={"learning_rate": rate})
        factory = self.registry.optimizer(settings.optimizer)
        self.job = make_job(self.adapted, self.strategy, self.task, settings, prepared.train, factory)
        use_frozen_features(self.job, self.adapted, settings, prepared.train, prepared.evaluation)
        epoch = self.job.batches.steps_per_epoch
        self._evaluate_every = max(1, round(settings.evaluate_every * epoch))
        self._save_every = max(1, round((settings.save_every or settings.evaluate_every) * epoch))
        self._evaluation_tokens = settings.pass_tokens
        self._built = True

    def _initialize(self) -> None:
        """Lets the strategy give its adapter first values."""
        job = self.job
        batches = (
            move(batch, job.accelerator.device) for step in range(job.total_steps) for batch in job.batches.at(step)
        )
        with eval_mode(job.model), preserved_rng():
            self.strategy.initialize(job.model, self.adapted.context, batches)

    def _restore(self, checkpoint: Path) -> None:
        parts = read_checkpoint(checkpoint)
        self._check_sources(parts["session"]["sources"])
        restore_snapshot(self.job, parts)
        self.best.load_state(parts["session"]["best"])
        self.info.state.update(parts["session"]["observers"])
        self.seconds_before, self._peak_before = parts["session"]["seconds"], parts["session"]["peak_memory_bytes"]
        self._prune()
        self._print(f"resumed from {checkpoint}")

    def _sources(self) -> dict[str, str]:
        """Returns fingerprints: of the base and every source, by the name in the recipe; of labels and template."""
        learned = json.dumps(self.task.state(), sort_keys=True)
        own = {LEARNED: hashlib.sha256(learned.encode()).hexdigest()}
        return {self.recipe.model.name: self.adapted.base.fingerprint, **self.data, **own}

    def _check_sources(self, begun_with: Mapping[str, str]) -> None:
        """Makes sure that the run goes on with the base and the rows that it began with.

        Raises:
            CheckpointError: One problem a file that has changed.
        """
        changed = [source for source, digest in self._sources().items() if begun_with.get(source) != digest]
        if changed:
            fix = "restore it to continue, or start a new run with --new"
            raise CheckpointError(
                [Problem(f"{source!r} has changed since the run began", fix=fix) for source in changed]
            )

    def _announce(self) -> None:
        trainable, total = self.adapted.trainable_parameters, self.adapted.total_parameters
        numerics = self.adapted.numerics
        share = f"{100 * trainable / total:.3g} %"
        arithmetic = "bf16" if numerics.bf16 else "fp32"
        self._print(
            f"{self.strategy.name} on {self.recipe.model.name}: {trainable:,} of {total:,} parameters train "
            f"({share}); base {numerics.precision}, arithmetic {arithmetic} on {numerics.device}"
        )
        for note in self.adapted.notes:
            self._print(f"note: {note}")
        if reads_padding(
            self.job.model, self.task, self.prepared.train, self.adapted.base.tokenizer, self.adapted.numerics
        ):
            self._print(
                "note: this architecture reads padding: what it makes of a row depends a little on the rows beside it"
            )
        self._print(
            f"{self.job.total_steps:,} steps of {self.recipe.training.effective_batch} rows, "
            f"{optimizer_name(self.job.optimizer)} at learning rate {self.job.scheduler.peaks[0]:.1e}"
        )

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    # -- between the steps ---------------------------------------------------------------------------

    def _steps(self, rehearsals: int) -> None:
        job = self.job
        job.tell, self._tokens = self._print, job.batches.tokens
        self._log = MetricsLog(self.folder.log, after_step=job.step)
        self._progress = ProgressReport(self.console, job.total_steps, first_step=job.step)
        chosen = {name: self.registry.tracker(name) for name in self.recipe.trackers}
        self._trackers = Trackers(chosen, self.info, self._print)
        try:
            self.registry.fire("adaptkit_train_begin", run=self.info)
            with StopSignals() as signals:
                if has_own_memory(job.accelerator.device):
                    self._rehearse(rehearsals)
                steps = training_steps(job)
                # Asked before the step: a run that is resumed may have been done already.
                while not self.best.should_stop and (record := next(steps, None)) is not None:
                    self._after(record)
                    if self._failure:
                        self._write()
                        raise self._failure
                    if signals.received:
                        self._stop(signals.received)
        finally:
            self._progress.close()
            self._trackers.close()
        if self.best.should_stop:
            self._print(f"stopped early: no better evaluation since step {self.best.step}")

    def _rehearse(self, steps: int) -> None:
        """Tries the longest batch of an evaluation now, and that of the training at the beginning of the next steps."""
        self.job.rehearsals = steps
        if self.prepared.evaluation:
            self._evaluation().rehearse()

    def _after(self, record: StepRecord) -> None:
        """Reports, evaluates and saves after a step, each where it is due."""
        values = asdict(record)
        if self._tokens != self.job.batches.tokens:
            self._tokens = values["micro_batch_tokens"] = self.job.batches.tokens
        self._record(values.pop("step"), {f"train/{name}": value for name, value in values.items()})
        self._progress.step(record)
        self._observe("adaptkit_step_end", record=record)
        if self.prepared.evaluation and self._due(self._evaluate_every):
            self._evaluate()
        if self._due(self._save_every) or self.best.step == self.job.step:
            self._save()

    def _record(self, step: int, values: dict[str, float]) -> None:
        self._log.write(step, values)
        self._trackers.log(step, values)

    def _due(self, every: int) -> bool:
        return self.job.step % every == 0 or self.job.step == self.job.total_steps

    def _evaluate(self) -> None:
        job = self.job
        figures = self._evaluation().figures()
        metrics = {f"eval/{name}": value for name, value in figures.items()}
        self._check_finite(metrics)
        better = self.best.update(job.step, figures)
        self._record(job.step, metrics)
        self._progress.evaluated(job.step, metrics, best=better)
        self._observe("adaptkit_evaluated", metrics=metrics)

    def _evaluation(self) -> Evaluation:
        job, tokenizer = self.job, self.adapted.base.tokenizer
        rows, tokens = self.prepared.evaluation, self._evaluation_tokens
        return Evaluation(
            job.wrapped, self.task, rows, tokenizer, job.numerics, tokens, self._shrink_evaluation, self._make_room
        )

    def _make_room(self) -> bool:
        """Drops recorded passes, which the next steps record again; False: there are none."""
        return self.job.recorder is not None and self.job.recorder.forget()

    def _shrink_evaluation(self, tokens: int) -> None:
        self._evaluation_tokens = tokens
        self._print(f"an evaluation batch does not fit into memory: from now on at most {tokens:,} tokens")

    def _check_finite(self, metrics: Mapping[str, float]) -> None:
        """Raises when a figure is not a number: the last step has broken the model."""
        broken = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise TrainingError(f"{', '.join(broken)} at step {self.job.step}", fix=STEADIER)

    def _observe(self, event: str, **arguments: Any) -> None:
        """Fires an event; an observer that raises stops the run when the step is complete and saved."""
        try:
            self.registry.fire(event, run=self.info, **arguments)
        except PluginError as error:
            self._failure = self._failure or error

    def _save(self) -> None:
        path = self._write()
        self._prune()
        self._observe("adaptkit_checkpoint_saved", path=path)

    def _prune(self) -> None:
        keep = self.recipe.training.keep_checkpoints
        prune_checkpoints(self.folder.checkpoints, keep, protect=(self._kept_checkpoint(),))

    def _write(self) -> Path:
        session = {
            "best": self.best.state(),
            "observers": self.info.state,
            "sources": self._sources(),
            "seconds": self.seconds_before + time.monotonic() - self._begun,
            "peak_memory_bytes": self._peak(),
        }
        return write_checkpoint(self.folder.checkpoints, self.job.step, {**take_snapshot(self.job), "session": session})

    def _peak(self) -> int:
        """Returns the most memory in use at once, in the processes before a resume too."""
        return max(self._peak_before, peak_memory_bytes(self.adapted.numerics.device))

    def _stop(self, signal: str) -> None:
        path = self._write()
        raise RunInterruptedError(
            f"stopped by {signal} after step {self.job.step} of {self.job.total_steps}; the state is saved",
            where=str(path),
            fix=f"continue with: adaptkit run {quote(str(self.folder.recipe))} --resume",
        )

    # -- after the last step -------------------------------------------------------------------------

    def _kept_checkpoint(self) -> Path:
        """Returns the checkpoint of the best evaluation, or of the last step where nothing was evaluated."""
        return self.folder.checkpoints / f"step-{self.best.step or self.job.step:08d}"

    def _keep(self) -> dict[str, Any]:
        """Makes the best step the artifact, and returns the results of the run."""
        kept = self.best.step or self.job.step
        if kept != self.job.step:
            self.strategy.load_state(self.job.model, read_checkpoint(self._kept_checkpoint())["model"])
        save_adapter(
            self.folder.adapter,
            self.adapted,
            recipe=self.recipe,
            strategy=self.strategy,
            task=self.task,
            registry=self.registry,
            data=self.data,
        )
        peak = self._peak()
        planned: dict[str, Any] = {}
        if self._planned is not None:
            planned = {"planned_peak_bytes": self._planned.peak, "planned_peak_parts": dict(self._planned.parts)}
            self._print(peak_comparison(self._planned.peak, peak))
        return {
            "metrics": {f"eval/{name}": value for name, value in (self.best.metrics or {}).items()},
            "steps": self.job.step,
            "kept_step": kept,
            "trainable_parameters": self.adapted.trainable_parameters,
            "total_parameters": self.adapted.total_parameters,
            "artifact_bytes": folder_bytes(self.folder.adapter),
            "peak_memory_bytes": peak,
            **planned,
        }
