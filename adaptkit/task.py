"""The contract of a task: what goes in, what comes out, what is good.

Rows are checked before a model is loaded, then turned into features, then into batches. The loss comes
back as a sum and a count, never as a mean: the loop divides by the count of the whole effective batch,
so that no cut into micro-batches can change the gradient.

Importing this module imports no torch.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

from adaptkit.recipe import TaskOptions
from adaptkit.strategy import JSON, Family

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptkit.metric import TextMetric
    from adaptkit.models.base.source import ModelSource
    from adaptkit.models.precision import Numerics
    from adaptkit.recipe import DataSpec, Precision

__all__ = ["BaseModel", "LossSum", "Metrics", "Row", "Splits", "Task", "TaskCapabilities", "TaskOptions"]

IGNORE_INDEX = -100
OptionsT = TypeVar("OptionsT", bound=TaskOptions)
Features: TypeAlias = dict[str, Any]
ChunkTokens: TypeAlias = int | Literal["auto"] | None


@dataclass(frozen=True)
class Row:
    """One row of a data file.

    Attributes:
        values: Column to value, as the file has it.
        where: ``file:line`` or ``file, row k`` for error messages.
        columns: The column that each role was read from, for error messages.
    """

    values: Mapping[str, Any]
    where: str
    columns: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def place(self, role: str) -> str:
        """Returns where a file has what the row has in a role."""
        return f"{self.where}, column {self.columns.get(role, role)!r}"


@dataclass(frozen=True)
class Splits:
    """The rows of a run, by the roles of its task; `evaluation` and `test` may be empty.

    Attributes:
        formats: Names of the formats that the files were read as.
    """

    train: Sequence[Row]
    evaluation: Sequence[Row] = ()
    test: Sequence[Row] = ()
    formats: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskCapabilities:
    """What a task can do.

    Attributes:
        families: Which families of models it serves.
        packing: Its features are ``input_ids`` with one of ``labels`` a token and nothing else, so that several
            may stand in one sequence, each blind to the others.
        generates: Its figures and predictions come from autoregressive generation.
    """

    families: frozenset[Family]
    packing: bool = False
    generates: bool = False


@dataclass
class LossSum:
    """The loss of one micro-batch, not yet divided.

    Attributes:
        total: Scalar, summed over what `Task.count` counts, with gradient.
        extra: Scalar that is not divided by the count (router losses and the like), or None. It is averaged over the
            micro-batches: what is no sum over rows cannot be the same for every cut.
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
        head_modules: Names of the modules that were made for the task; not a language model's own output layer.
        new_parameters: Names of the parameters whose values the base's files do not have.
        fingerprint: Of the base: weights, config, tokenizer and pooling, for provenance.
    """

    module: nn.Module
    tokenizer: Any
    family: Family
    precision: Precision
    head_modules: tuple[str, ...] = ()
    new_parameters: tuple[str, ...] = ()
    fingerprint: str = ""


class Metrics(ABC):
    """Collects figures batch by batch; it never keeps logits."""

    def expect(self, rows: int) -> None:  # noqa: B027 - most need not know
        """Is told, before the first batch, how many rows will come: who samples can spread over them."""

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
        echoed_roles: Columns that a prediction repeats in front, because it says little without them.
        peft_task_type: PEFT's name for it, or None.
        best: The figure that chooses the best checkpoint; one that depends on the rows is set in `prepare` and
            `load_state`.
        notes: What a person should know of the data although nothing is wrong (texts that were cut …).
        text_metric: Returns the text metric of a name, or raises what a person must know; set by the framework.
        loss_chunk_tokens: Labels whose logits over a vocabulary may exist at the same time, auto: as many as a fixed
            share of memory holds; None: all, so that the model's own output has them. Set by the framework, for
            tasks whose labels are tokens.
    """

    name: ClassVar[str]
    Options: ClassVar[type[TaskOptions]] = TaskOptions
    capabilities: ClassVar[TaskCapabilities]
    roles: ClassVar[tuple[str, ...]]
    label_roles: ClassVar[tuple[str, ...]] = ()
    optional_roles: ClassVar[tuple[str, ...]] = ()
    echoed_roles: ClassVar[tuple[str, ...]] = ()
    peft_task_type: ClassVar[str | None] = None
    best: Best = Best("loss", higher_is_better=False)
    text_metric: Callable[[str], type[TextMetric]]
    loss_chunk_tokens: ChunkTokens = "auto"

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

    def from_text(self, text: str) -> dict[str, Any]:
        """Returns the values, by role, of a row that asks for the prediction of one text."""
        return {self.roles[0]: text}

    def without_labels(self, row: Row) -> dict[str, Any]:
        """Returns what a row asks; rows that ask the same stay on one side of a split."""
        return {role: value for role, value in row.values.items() if role not in self.label_roles}

    def texts(self, rows: Sequence[Row]) -> Iterator[str]:
        """Yields the texts of rows, from which a new tokenizer learns its vocabulary."""
        for row in rows:
            yield from (value for value in row.values.values() if isinstance(value, str))

    def facts(self) -> list[str]:
        """Returns lines that tell a person what `prepare` found: label counts, turns, languages."""
        return []

    def feature_count(self, rows: int) -> int | None:
        """Returns how many features so many labelled rows give; None: that shows when they are tokenized."""
        return rows

    # -- from rows to batches ------------------------------------------------------------------------

    @abstractmethod
    def features(
        self, rows: Sequence[Row], data: DataSpec, tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Features]:
        """Turns rows into ``input_ids`` (a list of token ids) and whatever `collate` needs.

        Called before the model is loaded. There may be more or fewer features than rows (blocks of running
        text).

        Args:
            rows: Checked, by `prepare` or `check`.
            data: The recipe's section.
            tokenizer: Of the base.
            max_length: Tokens that a feature may have.
            labelled: Whether the rows are to be learned or measured; else they ask for predictions, have no labels or
                labels that are not looked at, and give one feature each.

        Raises:
            DataError: One problem a row that cannot be used (no label is left after the cut …).
        """

    def length(self, feature: Features) -> int:
        """Returns how many tokens a feature has, on all sides; micro-batches are cut by it."""
        return len(feature["input_ids"])

    def vary(self, feature: Features, generator: random.Random) -> Features:
        """Returns a feature as one epoch sees it: masked language modelling draws its masks here.

        A pure function of its arguments, so that neither a resume nor a cut into micro-batches changes it.
        The generator is that of this row and epoch; in evaluation it is the same every time.
        """
        return feature

    @abstractmethod
    def collate(self, features: Sequence[Features], tokenizer: Any) -> dict[str, Tensor]:
        """Pads features, on the right, to a batch; ``input_ids`` and ``attention_mask`` of ``(batch, seq)``."""

    def preview(self, feature: Features, tokenizer: Any) -> list[tuple[str, bool]]:
        """Returns what the model reads of a feature, in pieces, each with whether the loss falls on it."""
        return [(tokenizer.decode(feature["input_ids"]), False)]

    # -- through the model ---------------------------------------------------------------------------

    @abstractmethod
    def load_base(self, source: ModelSource, numerics: Numerics, seed: int) -> BaseModel:
        """Loads the base with a head for this task; whatever is new in it is a function of ``seed`` alone."""

    @abstractmethod
    def count(self, batch: Mapping[str, Tensor]) -> float:
        """Returns what the summed loss of a batch is to be divided by: label tokens, rows or their weights."""

    def locate(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Returns a training batch that is still on the host, with what `loss` would otherwise wait for a GPU to count.

        The default returns the batch.
        """
        return batch

    @abstractmethod
    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> LossSum:
        """Runs the model on a batch and returns the summed loss; labels of -100 do not count.

        A strategy with virtual tokens gives logits for them too, in front: align from the end.
        """

    @abstractmethod
    def metrics(self) -> Metrics:
        """Returns an empty collector."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[dict[str, JSON]]:
        """Returns one readable prediction a row of the batch."""
