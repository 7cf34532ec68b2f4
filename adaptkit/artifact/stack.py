"""Several finished runs on one base in memory: switch between them, or mix them by weight."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.artifact.mixing import check_mixable, mixed
from adaptkit.artifact.run import Run, load
from adaptkit.errors import Problem, RecipeError, did_you_mean

if TYPE_CHECKING:
    from adaptkit.strategy import JSON
    from adaptkit.task import BaseModel, Row, Task


def stack(runs: Mapping[str, str | Path] | Sequence[str | Path]) -> Stack:
    """Loads several runs of one base, whose weights are read and held once.

    Args:
        runs: Folders by the name that each is to have; of a list, the name is the folder's.

    Returns:
        The stack, on its first run.

    Raises:
        RecipeError: There is no run, two have one name, or their bases are not the same.
        CheckpointError: A run is not finished, or its files are damaged.
    """
    if isinstance(runs, str | Path) or not runs:
        raise RecipeError("a stack is made of several runs", allowed='stack({"a": "runs/a", "b": "runs/b"}), or a list')
    if not isinstance(runs, Mapping):
        names = [Path(run).name for run in runs]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise RecipeError(f"two runs are called {twice!r}", fix='name them: stack({"a": "…", "b": "…"})')
        runs = dict(zip(names, runs, strict=True))
    return Stack({name: load(folder) for name, folder in runs.items()})


class Stack:
    """Runs on one base. Each adapts a copy of the base that shares all tensors but those that the run changed.

    It is there to ask: training one of its models would change the others.

    Args:
        runs: By name; of one base.

    Attributes:
        run: What is in use: a run, a mixture, or the base.
    """

    run: Run

    def __init__(self, runs: Mapping[str, Run]) -> None:
        _check_bases(runs)
        self._runs = dict(runs)
        self._begun: dict[str, tuple[BaseModel, Task[Any]]] = {}
        for run in self._runs.values():
            base, run.task = self._beginning(run)
            run.hold(run.build(base=base))
        self.run = next(iter(self._runs.values()))

    def __repr__(self) -> str:
        return f"Stack({', '.join(self._runs)})"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the runs."""
        return tuple(self._runs)

    @property
    def model(self) -> Any:
        """The torch module in use, in eval mode."""
        return self.run.model

    def use(self, which: str | Mapping[str, float] | None) -> None:
        """Switches; nothing is read from the disk but, for a mixture, the tensors of its runs.

        Args:
            which: The name of a run; weights by name, for a mixture of what they trained; or None, for the base as the
                first run began with it.

        Raises:
            RecipeError: There is no such run, or a weight is no number.
            ModelError: The runs cannot be mixed, or the base alone cannot do the task.
        """
        if which is None:
            first = next(iter(self._runs.values()))
            self.run = first.on_base(self._beginning(first)[0])
        elif isinstance(which, str):
            self.run = self._named(which)
        else:
            self.run = self._mixture(which)

    def predict(self, texts: Sequence[str | Row]) -> list[dict[str, JSON]]:
        """Returns one prediction per text, in their order; see `Run.predict`."""
        return self.run.predict(texts)

    def evaluate(self, source: str | None = None) -> dict[str, float]:
        """Returns the task's figures over a data file; default: the held-out rows of the run; see `Run.evaluate`."""
        return self.run.evaluate(source)

    def _named(self, name: str) -> Run:
        if name not in self._runs:
            fix = did_you_mean(name, self._runs)
            raise RecipeError(f"there is no run {name!r} in the stack", allowed=", ".join(self._runs), fix=fix)
        return self._runs[name]

    def _mixture(self, weights: Mapping[str, float]) -> Run:
        if not weights:
            raise RecipeError("a mixture needs at least one run", allowed='{"a": 0.7, "b": 0.3}')
        first, *_ = [self._named(name) for name in weights]
        check_mixable(self._runs, weights)
        base, _ = self._beginning(first)
        return first.on_module(mixed(base, self._runs, weights), base)

    def _beginning(self, run: Run) -> tuple[BaseModel, Task[Any]]:
        """Returns the base with the head that a run began with, and the task that loaded it and may remember it.

        It is read once for all runs that began with the same.
        """
        from adaptkit.models.sharing import share_equal

        key = _what_it_began_with(run)
        if key not in self._begun:
            base = run.load_base()
            for other, _ in list(self._begun.values())[:1]:
                share_equal(base.module, other.module)
            self._begun[key] = (base, run.task)
        return self._begun[key]


def _check_bases(runs: Mapping[str, Run]) -> None:
    (name, first), *others = runs.items()
    problems = [
        Problem(
            f"the runs {name!r} and {other!r} are on different bases",
            where=str(run.directory),
            allowed=f"runs of {first.recipe.model.name}, as {name!r} found it",
            fix=f"leave {other!r} out, or run its recipe again on that base",
        )
        for other, run in others
        if _identity(run) != _identity(first)
    ]
    if problems:
        raise RecipeError(problems)


def _identity(run: Run) -> tuple[Any, ...]:
    """Returns what tells bases apart; new weights are a function of the seed too."""
    seed = run.recipe.training.seed if run.recipe.model.init == "random" else None
    return run.fingerprint, seed


def _what_it_began_with(run: Run) -> str:
    """Returns all that decides the model that a run began with, where the files of the base are the same."""
    recipe = run.recipe
    return json.dumps(
        [
            recipe.task.model_dump(mode="json"),
            run.task.state(),
            recipe.model.model_dump(mode="json", exclude={"name", "revision"}),
            recipe.training.compute,
            recipe.training.seed,
        ],
        sort_keys=True,
    )
