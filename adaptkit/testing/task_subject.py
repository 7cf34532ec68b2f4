"""A task with rows, on a tiny base: what the checks of tasks are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from adaptkit.recipe import Recipe, parse_recipe
from adaptkit.registry import Entry, Registry, load_registry
from adaptkit.task import Features, Row, Task, TaskCapabilities
from adaptkit.testing.bases import BASES, TinyBase, workshop
from adaptkit.testing.check import NotApplicable
from adaptkit.testing.subject import MAX_LENGTH, TRAINING

if TYPE_CHECKING:
    from adaptkit.testing.trial import Trial

Rows: TypeAlias = Sequence[Mapping[str, Any]]
STRATEGY = "full"
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class TaskSubject:
    """A task with its options, labelled rows of it, and the base on which it is tried.

    Attributes:
        task: The class.
        rows: Labelled rows that the task can learn, by its roles; six at least, of different lengths.
        bad_rows: Rows that it must refuse.
        questions: Rows that ask for a prediction; none: the labelled ones without their labels.
        options: Of the recipe's ``task:`` besides the name.
        base_name: One of `adaptkit.testing.bases.BASES`.
    """

    task: type[Task[Any]]
    rows: Rows
    bad_rows: Rows = ()
    questions: Rows = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    base_name: str = "bert"

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.task.name

    @property
    def known_failures(self) -> Mapping[str, str]:
        """A task declares none."""
        return {}

    @property
    def capabilities(self) -> TaskCapabilities:
        """What the task declares."""
        return self.task.capabilities

    @property
    def base(self) -> TinyBase:
        """What the base is."""
        return BASES[self.base_name]

    @property
    def registry(self) -> Registry:
        """All that is installed, and this class under its name, installed or not."""
        registry = load_registry()
        registry.tasks = {
            **registry.tasks,
            self.task.name: Entry(self.task, "the task under test", "", self.task.__module__),
        }
        return registry

    def make(self) -> Task[Any]:
        """Returns a new instance of the task, its options validated."""
        return self.registry.make_task(self.task.Options.model_validate({"name": self.task.name, **self.options}))

    def recipe(self, **training: Any) -> Recipe:
        """Returns the recipe of a run of this task on this base, under full fine-tuning.

        Raises:
            NotApplicable: The task does not serve the base.
        """
        if self.base.family not in self.capabilities.families:
            raise NotApplicable(f"{self.base.family} models are not declared")
        rows = workshop().write(f"task-{self.task.name}.jsonl", self.rows)
        return parse_recipe(
            {
                "model": {"name": workshop().base(self.base_name), "precision": "fp32"},
                "task": {"name": self.task.name, **self.options},
                "data": {"train": rows, "evaluation": rows, "max_length": MAX_LENGTH},
                "strategy": STRATEGY,
                "training": {**TRAINING, "learning_rate": LEARNING_RATE, **training},
                "output": str(workshop().folder / "run"),
            },
            resolver=self.registry,
        )

    def trial(self, **training: Any) -> Trial:
        """Returns a run of this task on this base before its first step; raises as `recipe` does."""
        from adaptkit.testing.trial import make_trial

        recipe, registry = self.recipe(**training), self.registry
        return make_trial(recipe, registry.strategy(STRATEGY)(recipe.strategy), registry)

    def read(self, *rows: Mapping[str, Any]) -> list[Row]:
        """Returns rows as they come from a file."""
        return [Row(values, f"row {number}") for number, values in enumerate(rows, 1)]

    def unlabelled(self) -> list[Row]:
        """Returns rows that ask for predictions."""
        asked = self.questions or [
            {k: v for k, v in row.items() if k not in self.task.label_roles} for row in self.rows
        ]
        return self.read(*asked)

    def unlabelled_features(self, trial: Trial) -> list[Features]:
        """Returns the features of rows that ask for predictions."""
        recipe, tokenizer = trial.recipe, trial.adapted.base.tokenizer
        length = trial.adapted.max_length
        return trial.task.features(self.unlabelled(), recipe.data, tokenizer, length, labelled=False)


def task_subjects(
    task: type[Task[Any]] | Task[Any], rows: Rows, *, bad_rows: Rows = (), questions: Rows = ()
) -> list[TaskSubject]:
    """Returns a task on every tiny base; of an instance the options that were set are used."""
    cls, options = task, {}
    if isinstance(task, Task):
        cls, options = type(task), task.options.model_dump(mode="json", exclude={"name"}, exclude_unset=True)
    assert isinstance(cls, type)
    one = TaskSubject(cls, tuple(rows), tuple(bad_rows), tuple(questions), options)
    return [replace(one, base_name=base) for base in BASES]
