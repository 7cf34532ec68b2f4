"""One label for a text, or for a pair of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from adaptkit.data.encoding import encode_texts
from adaptkit.data.problems import data_error, enumerate_names
from adaptkit.errors import DataError, Problem
from adaptkit.task import (
    IGNORE_INDEX,
    BaseModel,
    Best,
    Features,
    LossSum,
    Metrics,
    Row,
    Splits,
    Task,
    TaskCapabilities,
    TaskOptions,
)
from adaptkit.tasks._confusion import ConfusionMatrix
from adaptkit.tasks._examples import Example, read_examples
from adaptkit.tasks._labels import balanced_weights, foreign_labels, ordered

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptkit.recipe import DataSpec, ModelSpec, Precision
    from adaptkit.strategy import JSON

LabelName = Annotated[str, Field(coerce_numbers_to_str=True)]


class TextClassificationOptions(TaskOptions):
    """The keys of ``task:`` for text classification."""

    pooling: Literal["auto", "native", "cls", "mean", "last"] = Field(
        "auto",
        description="How token features become one vector; auto: as the base was trained, "
        "native: as the model class of transformers does it.",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: every class counts alike in the loss, however rare it is."
    )
    head_dropout: float = Field(0.1, ge=0, lt=1, description="Dropout in front of a new head.")
    labels: Annotated[list[LabelName], Field(min_length=2)] | None = Field(
        None, description="All labels in the order of the head's outputs. Default: those of the training rows, sorted."
    )

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: list[str] | None) -> list[str] | None:
        if labels and len(set(labels)) < len(labels):
            raise ValueError("a label is named twice")
        return labels


class TextClassification(Task[TextClassificationOptions]):
    """Single-label classification with a linear head.

    Attributes:
        labels: Names, in the order of the logits.
        counts: Training rows of each label.
        paired: Whether a row has two texts.
    """

    name = "text-classification"
    Options = TextClassificationOptions
    capabilities = TaskCapabilities(families=frozenset({"encoder", "decoder"}))
    roles = ("text",)
    label_roles = ("label",)
    optional_roles = ("text_pair",)
    peft_task_type = "SEQ_CLS"
    best = Best("accuracy")

    def __init__(self, options: TextClassificationOptions) -> None:
        super().__init__(options)
        self.labels: list[str] = []
        self.counts: list[int] = []
        self.paired = False

    # -- before any model ----------------------------------------------------------------------------

    def prepare(self, splits: Splits, data: DataSpec) -> None:
        """Checks all splits, whose rows go by role, and learns the labels.

        Raises:
            DataError: Everything that is wrong in any split, the first ten problems in full.
        """
        self.paired = any("text_pair" in row.values for row in splits.train)
        train, problems = read_examples(splits.train, data.columns, labelled=True, paired=self.paired)
        problems += self._learn_labels(train, data.train)
        seen = [label for label, count in zip(self.labels, self.counts, strict=True) if count]
        held_out = {"evaluation": splits.evaluation, "test": splits.test}
        examples = {}
        for split, rows in held_out.items():
            examples[split], found = read_examples(rows, data.columns, labelled=True, paired=self.paired)
            problems += found
            if seen:
                fix = "add training rows with it, or remove its rows"
                problems += foreign_labels(examples[split], seen, f"of the {split} rows is on no training row", fix)
        if problems:
            raise data_error(problems)
        for split in held_out:
            self._note_duplicates(train, examples[split], split)

    def check(self, rows: Sequence[Row], *, labelled: bool) -> None:
        """Checks rows that come after training: to be evaluated, or (without labels) to be predicted.

        Raises:
            DataError: A text or label cannot be used, or a label is not one of the head's.
        """
        self._checked(rows, {}, labelled=labelled)

    def _checked(self, rows: Sequence[Row], columns: Mapping[str, str], *, labelled: bool) -> list[Example]:
        examples, problems = read_examples(rows, columns, labelled=labelled, paired=self.paired)
        problems += foreign_labels(examples, self.labels, "is not one of this model's", "remove the rows or the label")
        if problems:
            raise data_error(problems)
        return examples

    def _learn_labels(self, train: Sequence[Example], source: str) -> list[Problem]:
        counts = Counter(example.label for example in train if example.label is not None)
        self.labels = list(self.options.labels or ordered(counts))
        self.counts = [counts[label] for label in self.labels]
        if not train:
            return [Problem("there are no training rows", source, "rows of two labels or more")]
        if len(counts) == 1:
            found = f"every training row has the label {next(iter(counts))!r}"
            fix = "check the label column, and whether the rows were cut off from a sorted file"
            return [Problem(found, source, "two labels or more", fix)]
        return foreign_labels(train, self.labels, "is not in task.labels", "add it there, or remove its rows")

    def _note_duplicates(self, train: Sequence[Example], other: Sequence[Example], split: str) -> None:
        known = {(example.text, example.pair) for example in train}
        repeated = sum((example.text, example.pair) in known for example in other)
        if repeated:
            self.notes.append(
                f"{repeated:,} of {len(other):,} {split} rows are also training rows, so the {split} figures flatter"
            )

    def state(self) -> dict[str, JSON]:
        """Returns the labels, their training rows, and whether texts come in pairs."""
        return {"labels": self.labels, "counts": self.counts, "paired": self.paired}

    def load_state(self, state: Mapping[str, JSON]) -> None:
        """Takes back what `state` gave."""
        self.labels, self.counts = list(state["labels"]), list(state["counts"])
        self.paired = bool(state["paired"])

    def load_base(self, spec: ModelSpec, precision: Precision, seed: int) -> BaseModel:
        """Loads the base with one output a label."""
        from adaptkit.models.classifier import load_classifier

        return load_classifier(
            spec,
            precision=precision,
            seed=seed,
            labels=self.labels,
            pooling=self.options.pooling,
            dropout=self.options.head_dropout,
        )

    # -- from rows to batches ------------------------------------------------------------------------

    def features(self, rows: Sequence[Row], data: DataSpec, tokenizer: Any, max_length: int) -> list[Features]:
        """Tokenizes rows; a feature has ``input_ids``, for some pairs ``token_type_ids``, and the ``label``'s index.

        Raises:
            DataError: A text cannot be used, or a label is not one of the head's.
        """
        examples = self._checked(rows, data.columns, labelled=False)
        pairs = [example.pair or "" for example in examples] if self.paired else None
        encoded = encode_texts([example.text for example in examples], tokenizer, max_length, pairs=pairs)
        if encoded.truncated:
            rows_cut = f"{encoded.truncated:,} of {len(rows):,} rows"
            self.notes.append(f"{rows_cut} are longer than {max_length:,} tokens and were cut")
        index = {label: number for number, label in enumerate(self.labels)}
        features: list[Features] = []
        for number, example in enumerate(examples):
            feature: Features = {"input_ids": encoded.input_ids[number]}
            if encoded.token_type_ids is not None:
                feature["token_type_ids"] = encoded.token_type_ids[number]
            if example.label is not None:
                feature["label"] = index[example.label]
            features.append(feature)
        return features

    def collate(self, features: Sequence[Features], tokenizer: Any) -> dict[str, Tensor]:
        """Pads on the right to the longest feature.

        Returns:
            int64 tensors: ``input_ids``, ``attention_mask`` and for some pairs ``token_type_ids`` of shape
            ``(batch, seq)``, and ``labels`` of shape ``(batch,)``, -100 where a row has none.
        """
        import torch

        lengths = [len(feature["input_ids"]) for feature in features]
        longest = max(lengths)
        # Padding is masked, so any id does for a tokenizer that has none.
        padding = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": 0}
        batch = {
            key: [feature[key] + [value] * (longest - len(feature[key])) for feature in features]
            for key, value in padding.items()
            if key in features[0]
        }
        batch["attention_mask"] = [[1] * length + [0] * (longest - length) for length in lengths]
        tensors = {key: torch.tensor(value, dtype=torch.int64) for key, value in batch.items()}
        labels = [feature.get("label", IGNORE_INDEX) for feature in features]
        return {**tensors, "labels": torch.tensor(labels, dtype=torch.int64)}

    # -- through the model ---------------------------------------------------------------------------

    def count(self, batch: Mapping[str, Tensor]) -> float:
        """Returns the rows that have a label, or with balanced classes the sum of their weights."""
        labels = batch["labels"][batch["labels"] != IGNORE_INDEX]
        weights = self._class_weights(labels)
        return float(labels.numel() if weights is None else weights[labels].sum())

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> LossSum:
        """Returns the cross-entropy in nats, summed over the rows that have a label."""
        return LossSum(self._summed_loss(_logits(model, batch), batch["labels"]))

    def metrics(self) -> Metrics:
        """Returns a collector of loss, accuracy, macro F1 and Matthews correlation."""
        return ClassificationMetrics(self)

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[dict[str, JSON]]:
        """Returns ``{"label": name, "scores": {name: probability}}`` for each row."""
        scores = _logits(model, batch).softmax(dim=-1).tolist()
        return [
            {"label": self.labels[row.index(max(row))], "scores": dict(zip(self.labels, row, strict=True))}
            for row in scores
        ]

    def _summed_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns a scalar from logits ``(batch, classes)`` and labels ``(batch,)``."""
        from torch.nn.functional import cross_entropy

        weights = self._class_weights(labels)
        return cross_entropy(logits, labels, weights, reduction="sum", ignore_index=IGNORE_INDEX)

    def _class_weights(self, like: Tensor) -> Tensor | None:
        """Returns float32 weights ``(classes,)`` on the device of ``like``; None where all are 1."""
        if self.options.class_weights == "none":
            return None
        import torch

        return torch.tensor(balanced_weights(self.counts), dtype=torch.float32, device=like.device)


class ClassificationMetrics(Metrics):
    """Loss and the figures of a confusion matrix."""

    def __init__(self, task: TextClassification) -> None:
        self._task = task
        self._confusion = ConfusionMatrix(len(task.labels))
        self._loss, self._count = 0.0, 0.0

    def update(self, model: nn.Module, batch: Mapping[str, Tensor]) -> None:
        """Takes one batch; rows without a label are passed over."""
        logits, labels = _logits(model, batch), batch["labels"]
        self._loss += self._task._summed_loss(logits, labels).item()
        self._count += self._task.count(batch)
        known = labels != IGNORE_INDEX
        self._confusion.update(labels[known], logits.argmax(dim=-1)[known])

    def compute(self) -> dict[str, float]:
        """Returns ``loss`` in nats a row, ``accuracy``, ``macro_f1`` and ``matthews_correlation``.

        Raises:
            DataError: No row had a label.
        """
        if not self._count:
            allowed = enumerate_names(self._task.labels)
            raise DataError("no row has a label, so nothing can be measured", allowed=allowed, fix="add labels")
        return {"loss": self._loss / self._count, **self._confusion.compute()}


def _logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns float32 logits of shape ``(batch, classes)``, whatever the precision of the model."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits: Tensor = model(**inputs).logits
    return logits.float()
