"""Several strategies on one recipe, side by side: the same rows, the same seeds, a process for each run."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adaptkit.artifact.folder import RunFolder, write_json
from adaptkit.artifact.run import load
from adaptkit.errors import AdaptkitError, RecipeError
from adaptkit.recipe import Recipe
from adaptkit.registry import load_registry
from adaptkit.runner import check, check_begun_with, choose, resolve


@dataclass(frozen=True)
class Result:
    """One finished run of a comparison.

    Attributes:
        strategy: Its name.
        seed: Of its training.
        metrics: On the test split where the recipe has one, else on the evaluation split.
        trainable_parameters: How many parameters trained.
        peak_memory_bytes: Of the run's process (of the GPU where there is one).
        seconds: From reading the recipe to the saved artifact.
        artifact_bytes: Of the adapter folder.
    """

    strategy: str
    seed: int
    metrics: dict[str, float]
    trainable_parameters: int
    peak_memory_bytes: int
    seconds: float
    artifact_bytes: int


@dataclass(frozen=True)
class Comparison:
    """All runs of a comparison.

    Attributes:
        metric: The figure by which the task chooses.
        higher_is_better: Whether more of it is better.
        results: One a strategy and seed.
    """

    metric: str
    higher_is_better: bool
    results: tuple[Result, ...]

    def of(self, strategy: str) -> list[Result]:
        """Returns the runs of one strategy, by seed."""
        return sorted((result for result in self.results if result.strategy == strategy), key=lambda r: r.seed)

    def rows(self) -> list[list[str]]:
        """Returns a table, best strategy first: a header and one row a strategy.

        Seconds are those of the fastest seed, which is the one that other work on the machine disturbed least.
        """
        names = dict.fromkeys(result.strategy for result in self.results)
        ranked = sorted(names, key=lambda name: self._mean(name, self._figure), reverse=self.higher_is_better)
        header = ["strategy", self.metric, "trainable", "peak memory", "seconds", "artifact"]
        return [header, *(self._row(name) for name in ranked)]

    def _row(self, name: str) -> list[str]:
        figures = [self._figure(result) for result in self.of(name)]
        return [
            name,
            mean_and_deviation(figures),
            f"{self.of(name)[0].trainable_parameters:,}",
            f"{self._mean(name, lambda r: r.peak_memory_bytes) / 2**30:.2f} GiB",
            f"{min(result.seconds for result in self.of(name)):.0f}",
            f"{self._mean(name, lambda r: r.artifact_bytes) / 1e6:.2f} MB",
        ]

    def _figure(self, result: Result) -> float:
        return result.metrics[self.metric]

    def _mean(self, name: str, value: Callable[[Result], float]) -> float:
        return statistics.fmean(value(result) for result in self.of(name))


def compare(
    recipe: str | Path,
    strategies: Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    overrides: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> Comparison:
    """Runs a recipe under several strategies and seeds, each in a process of its own, one after another.

    Runs that are finished already are not run again, and one that was interrupted goes on, so that a
    comparison can be stopped, continued and extended. They lie in the recipe's output folder as
    ``STRATEGY-seed0``; ``comparison.json`` beside them holds the figures.

    Args:
        recipe: A recipe file.
        strategies: Names; each runs with its own defaults, the recipe's own with what the recipe says of it.
        seeds: Of the training.
        overrides: ``key=value``, for all runs.
        report: Is given one line a run.

    Raises:
        AdaptkitError: The recipe is wrong under one of the strategies, or a run failed.
    """
    runs = _plan(recipe, strategies, seeds, overrides)
    results = []
    registry = load_registry()
    for strategy, seed, parsed in runs:
        folder = RunFolder(Path(parsed.output))
        if folder.results.is_file():
            check_begun_with(folder, parsed, registry)
        else:
            report(f"running {strategy}, seed {seed}")
            run_apart(recipe, [*overrides, *_own(strategy, seed, folder.path.parent)], folder)
        results.append(measure(folder))
        report(f"{strategy}, seed {seed}: " + "  ".join(f"{k} {v:.4f}" for k, v in results[-1].metrics.items()))
    best = load(runs[0][2].output).task.best
    comparison = Comparison(best.metric, best.higher_is_better, tuple(results))
    write_json(Path(runs[0][2].output).parent / "comparison.json", asdict(comparison))
    return comparison


def mean_and_deviation(values: Sequence[float]) -> str:
    """Returns ``mean ± standard deviation`` of a sample, or the only value."""
    mean = statistics.fmean(values)
    return f"{mean:.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{mean:.3f}"


def _plan(
    recipe: str | Path, strategies: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]
) -> list[tuple[str, int, Recipe]]:
    """Reads and checks the recipe under every strategy before the first run begins."""
    registry = load_registry()
    if not strategies or not seeds:
        raise RecipeError("a comparison needs at least one strategy and one seed")
    parent = Path(resolve(recipe, overrides, registry).output)
    runs = []
    for strategy in strategies:
        for seed in seeds:
            own = _own(strategy, seed, parent)
            runs.append((strategy, seed, resolve(recipe, [*overrides, *own], registry)))
        check(runs[-1][2], *choose(runs[-1][2], registry), registry)
    return runs


def _own(strategy: str, seed: int, parent: Path) -> list[str]:
    return [f"strategy={strategy}", f"training.seed={seed}", f"output={parent / f'{strategy}-seed{seed}'}"]


def run_apart(recipe: str | Path, overrides: Sequence[str], folder: RunFolder) -> None:
    """Runs a recipe in a process of its own, so that its memory and time are its own.

    Args:
        recipe: A recipe file.
        overrides: ``key=value``, the output among them.
        folder: That output; a run that was interrupted in it goes on.

    Raises:
        AdaptkitError: The run failed.
    """
    resume = ["--resume"] if folder.recipe.is_file() else []
    command = [sys.executable, "-m", "adaptkit", "run", str(recipe), *overrides, *resume]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise AdaptkitError(
            f"the run failed with exit code {done.returncode}:\n{done.stderr.strip()}",
            where=" ".join(command[1:]),
            fix="repair it and compare again: finished runs are kept",
        )


def measure(folder: RunFolder) -> Result:
    """Returns the figures of a finished run; those of the test split are measured once and kept beside it."""
    kept = folder.path / "test.json"
    run = load(folder.path)
    if kept.is_file():
        metrics: Mapping[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    else:
        metrics = run.evaluate()
        write_json(kept, metrics)
    return Result(
        strategy=run.recipe.strategy.name,
        seed=run.recipe.training.seed,
        metrics=dict(metrics),
        **{
            name: run.results[name]
            for name in ("trainable_parameters", "peak_memory_bytes", "seconds", "artifact_bytes")
        },
    )
