"""The contract of a task: what goes in, what comes out, what is good.

Rows are checked before a model is loaded, then turned into features, then into batches. The loss comes
back as a sum and a count, never as a mean: the loop divides by the count of the whole effective batch,
so that no cut into micro-batches can change the gradient.

Importing this module imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar

from adaptkit.recipe import TaskOptions
from adaptkit.strategy import JSON, Family

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptkit.recipe import DataSpec, ModelSpec, Precision

__all__ = ["BaseModel", "LossSum", "Metrics", "Row", "Splits", "Task", "TaskCapabilities", "TaskOptions"]

IGNORE_INDEX = -100
OptionsT = TypeVar("OptionsT", bound=TaskOptions)
Features: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of a data file.

    Attributes:
        values: Column to value, as the file has it.
        where: ``file:line`` or ``file, row k`` for error messages.
    """

    values: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class Splits:
    """The rows of a run; `evaluation` and `test` may be empty."""

    train: Sequence[Row]
    evaluation: Sequence[Row] = ()
    test: Sequence[Row] = ()


@dataclass(frozen=True)
class TaskCapabilities:
    """Which families a task serves."""

    families: frozenset[Family]


@dataclass
class LossSum:
    """The loss of one micro-batch, not yet divided.

    Attributes:
        total: Scalar, summed over what `Task.count` counts, with gradient.
        extra: Scalar that is not divided by the count (router losses and the like), or None.
    """

    total: Tensor
    extra: Tensor | None = None


@dataclass
class BaseModel:
    """A base model with the task's head.

    Attributes:
        module: Takes ``input_ids`` and ``attention_mask`` of shape ``(batch, seq)`` by keyword.
        tokenizer: Of the base.
        family: encoder, decoder or encoder-decoder.
        head_modules: Names of the modules of the head.
        new_modules: Those of them whose weights the checkpoint does not have.
        fingerprint: Of the base: weights, config, tokenizer and pooling, for provenance.
    """

    module: nn.Module
    tokenizer: Any
    family: Family
    precision: Precision
    head_modules: tuple[str, ...] = ()
    new_modules: tuple[str, ...] = ()
    fingerprint: str = ""


class Metrics(ABC):
    """Collects figures batch by batch; it never keeps logits."""

    @abstractmethod
    def update(self, model: nn.Module, batch: Mapping[str, Tensor]) -> None:
        """Takes one evaluation batch through the model (in eval mode, without gradient)."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Returns the figures by name, without a prefix; ``loss`` is always one of them."""


@dataclass(frozen=True)
class Best:
    """The figure that chooses the best checkpoint."""

    metric: str
    higher_is_better: bool = True


class Task(ABC, Generic[OptionsT]):
    """What a model is adapted to. Subclass it and set ``name``.

    A task learns from the training rows (its label names, say) in `prepare`; what it learned is
    `state`, saved with the artifact and given back to `load_state`.

    Attributes:
        name: What a recipe calls it.
        Options: Its options; the fields are the keys of ``task:``.
        capabilities: What it can do.
        roles: Columns that every row needs, by role.
        label_roles: Columns that a labelled row needs besides.
        optional_roles: Columns that a row may have.
        peft_task_type: PEFT's name for it, or None.
        best: The figure that chooses the best checkpoint.
        notes: What a person should know of the data although nothing is wrong (texts that were cut …).
    """

    name: ClassVar[str]
    Options: ClassVar[type[TaskOptions]] = TaskOptions
    capabilities: ClassVar[TaskCapabilities]
    roles: ClassVar[tuple[str, ...]]
    label_roles: ClassVar[tuple[str, ...]] = ()
    optional_roles: ClassVar[tuple[str, ...]] = ()
    peft_task_type: ClassVar[str | None] = None
    best: ClassVar[Best] = Best("loss", higher_is_better=False)

    def __init__(self, options: OptionsT) -> None:
        self.options = options
        self.notes: list[str] = []

    @abstractmethod
    def prepare(self, splits: Splits, data: DataSpec) -> None:
        """Checks every row and learns what the head needs. No model, no torch, seconds.

        Raises:
            DataError: One problem a row that cannot be used, and those of the whole (one class only …).
        """

    @abstractmethod
    def check(self, rows: Sequence[Row], *, labelled: bool) -> None:
        """Checks rows that come later, against what `prepare` learned; without labels: rows to predict.

        Raises:
            DataError: One problem a row that cannot be used.
        """

    @abstractmethod
    def state(self) -> dict[str, JSON]:
        """Returns what `prepare` learned, as JSON."""

    @abstractmethod
    def load_state(self, state: Mapping[str, JSON]) -> None:
        """Takes back what `state` gave, in place of `prepare`."""

    @abstractmethod
    def load_base(self, spec: ModelSpec, precision: Precision, seed: int) -> BaseModel:
        """Loads the base with a head for this task; a new head is a function of ``seed`` alone."""

    @abstractmethod
    def features(self, rows: Sequence[Row], data: DataSpec, tokenizer: Any, max_length: int) -> list[Features]:
        """Turns rows into ``input_ids`` (a list of token ids) and whatever `collate` needs.

        Rows without labels (predictions) are allowed.
        """

    @abstractmethod
    def collate(self, features: Sequence[Features], tokenizer: Any) -> dict[str, Tensor]:
        """Pads features to a batch; ``input_ids`` and ``attention_mask`` of shape ``(batch, seq)``."""

    @abstractmethod
    def count(self, batch: Mapping[str, Tensor]) -> float:
        """Returns what the summed loss of a batch is to be divided by: label tokens, rows or their weights."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> LossSum:
        """Runs the model on a batch and returns the summed loss; labels of -100 do not count."""

    @abstractmethod
    def metrics(self) -> Metrics:
        """Returns an empty collector."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[dict[str, JSON]]:
        """Returns one readable prediction a row of the batch."""
