"""One label, several labels or a number for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from adaptkit.data.encoding import encode_texts
from adaptkit.data.problems import data_error
from adaptkit.errors import DataError, Problem, RecipeError
from adaptkit.task import (
    BaseModel,
    Features,
    LossSum,
    Metrics,
    Row,
    Splits,
    Task,
    TaskCapabilities,
    TaskOptions,
)
from adaptkit.tasks._examples import note_repeated
from adaptkit.tasks._labels import alike
from adaptkit.tasks._language import BECOMES, pad_tokens
from adaptkit.tasks.classification.examples import read_examples
from adaptkit.tasks.classification.kinds import guess_kind
from adaptkit.tasks.classification.multi import MultiLabel
from adaptkit.tasks.classification.regression import Regression
from adaptkit.tasks.classification.single import SingleLabel
from adaptkit.tasks.classification.target import Example, Kind, Target

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptkit.models.base.source import ModelSource
    from adaptkit.models.precision import Numerics
    from adaptkit.recipe import DataSpec
    from adaptkit.strategy import JSON

LabelName = Annotated[str, Field(coerce_numbers_to_str=True)]


class TextClassificationOptions(TaskOptions):
    """The keys of ``task:`` for text classification."""

    kind: Literal["auto", "single", "multi", "regression"] = Field(
        "auto",
        description="single: one label a row, multi: a list of labels a row, regression: a number; "
        "auto: single or multi, by what the training rows have.",
    )
    pooling: Literal["auto", "native", "cls", "mean", "last"] = Field(
        "auto",
        description="How token features become one vector; auto: as the base was trained, "
        "native: as the model class of transformers does it.",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: every class counts alike in the loss, however rare it is; of kind single only."
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
    """Classification or regression with a linear head.

    Attributes:
        target: What is predicted; known once the rows are.
        paired: Whether a row has two texts.
    """

    name = "text-classification"
    Options = TextClassificationOptions
    capabilities = TaskCapabilities(families=frozenset({"encoder", "decoder", "encoder-decoder"}))
    roles = ("text",)
    label_roles = ("label",)
    optional_roles = ("text_pair",)
    peft_task_type = "SEQ_CLS"
    best = SingleLabel.best

    def __init__(self, options: TextClassificationOptions) -> None:
        super().__init__(options)
        self._choose("single" if options.kind == "auto" else options.kind)
        self.paired = False

    def _choose(self, kind: Kind) -> None:
        self.target = make_target(kind, self.options)
        self.best = self.target.best

    # -- before any model ----------------------------------------------------------------------------

    def prepare(self, splits: Splits, data: DataSpec) -> None:
        """Checks all splits, whose rows go by role, and learns the labels.

        Raises:
            DataError: Everything that is wrong in any split, the first ten problems in full.
            RecipeError: The recipe has options that the kind of the labels has no use for.
        """
        if self.options.kind == "auto":
            self._choose(guess_kind([row.values.get("label") for row in splits.train]))
        self.paired = any("text_pair" in row.values for row in splits.train)
        train, problems = read_examples(splits.train, self.target, labelled=True, paired=self.paired)
        problems += self.target.learn(train)
        held_out = {"evaluation": splits.evaluation, "test": splits.test}
        examples = {}
        for split, rows in held_out.items():
            examples[split], found = read_examples(rows, self.target, labelled=True, paired=self.paired)
            problems += found + self.target.unseen(examples[split], split)
        if problems:
            raise data_error(problems)
        if self.target.kind != "regression":
            self.notes += alike(self.target.outputs, "label")
        for split in held_out:
            known, other = ([(row.text, row.pair) for row in rows] for rows in (train, examples[split]))
            self.notes += note_repeated(known, other, split)

    def check(self, rows: Sequence[Row], *, labelled: bool) -> None:
        """Checks rows that come after training: to be evaluated, or (without labels) to be predicted.

        Raises:
            DataError: A text or label cannot be used, or a label is not one of the head's.
        """
        self._checked(rows, labelled=labelled)

    def _checked(self, rows: Sequence[Row], *, labelled: bool) -> list[Example]:
        examples, problems = read_examples(rows, self.target, labelled=labelled, paired=self.paired)
        problems += self.target.foreign(examples)
        if problems:
            raise data_error(problems)
        return examples

    def state(self) -> dict[str, JSON]:
        """Returns the kind, what was learned of the labels, and whether texts come in pairs."""
        return {"kind": self.target.kind, "paired": self.paired, **self.target.state()}

    def load_state(self, state: Mapping[str, JSON]) -> None:
        """Takes back what `state` gave."""
        self._choose(state["kind"])
        self.target.load_state(state)
        self.paired = bool(state["paired"])

    def facts(self) -> list[str]:
        """Returns how many training rows have which label, or where their numbers lie."""
        return self.target.facts()

    def texts(self, rows: Sequence[Row]) -> Iterator[str]:
        """Yields the texts, and no label."""
        for row in rows:
            yield from (row.values[role] for role in ("text", "text_pair") if isinstance(row.values.get(role), str))

    # -- from rows to batches ------------------------------------------------------------------------

    def features(
        self, rows: Sequence[Row], data: DataSpec, tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Features]:
        """Tokenizes rows; a feature has ``input_ids``, for some pairs ``token_type_ids``, and the encoded ``label``.

        Raises:
            DataError: A text cannot be used, or a label is not one of the head's.
        """
        examples = self._checked(rows, labelled=False)
        pairs = [example.pair or "" for example in examples] if self.paired else None
        encoded = encode_texts([example.text for example in examples], tokenizer, max_length, pairs=pairs)
        if encoded.truncated:
            rows_cut = f"{encoded.truncated:,} of {len(rows):,} rows"
            self.notes.append(f"{rows_cut} are longer than {max_length:,} tokens and were cut")
        fix = "remove the row, or choose a base whose tokenizer knows its characters"
        if unread := [
            Problem("the tokenizer finds no token in the text", example.where, fix=fix)
            for example, ids in zip(examples, encoded.input_ids, strict=True)
            if len(ids) <= tokenizer.num_special_tokens_to_add(pair=self.paired)
        ]:
            raise data_error(unread)
        features: list[Features] = []
        for number, example in enumerate(examples):
            feature: Features = {"input_ids": encoded.input_ids[number]}
            if encoded.token_type_ids is not None:
                feature["token_type_ids"] = encoded.token_type_ids[number]
            if example.label is not None:
                feature["label"] = self.target.encode(example.label)
            features.append(feature)
        return features

    def collate(self, features: Sequence[Features], tokenizer: Any) -> dict[str, Tensor]:
        """Pads on the right to the longest feature.

        Returns:
            int64 tensors ``input_ids``, ``attention_mask`` and for some pairs ``token_type_ids`` of shape
            ``(batch, seq)``, and ``labels`` of shape ``(batch, …)`` as the target has them.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        batch = pad_tokens(features, tokenizer)
        if "token_type_ids" in features[0]:
            types = [torch.tensor(feature["token_type_ids"]) for feature in features]
            batch["token_type_ids"] = pad_sequence(types, batch_first=True)
        batch["labels"] = self.target.collate([feature.get("label") for feature in features])
        return batch

    def preview(self, feature: Features, tokenizer: Any) -> list[tuple[str, bool]]:
        """Returns the text and, where there is one, the label."""
        pieces = super().preview(feature, tokenizer)
        if "label" not in feature:
            return pieces
        return [*pieces, (BECOMES, False), (self.target.show(feature["label"]), True)]

    # -- through the model ---------------------------------------------------------------------------

    def load_base(self, source: ModelSource, numerics: Numerics, seed: int) -> BaseModel:
        """Loads the base with the target's outputs."""
        from adaptkit.models.heads.classifier import load_classifier

        return load_classifier(
            source,
            numerics=numerics,
            seed=seed,
            labels=self.target.outputs,
            pooling=self.options.pooling,
            dropout=self.options.head_dropout,
        )

    def count(self, batch: Mapping[str, Tensor]) -> float:
        """Returns what the target counts: rows, their weights, or rows times labels."""
        return self.target.count(batch["labels"])

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> LossSum:
        """Returns the target's loss, summed over the rows that have a label."""
        return LossSum(self.target.loss(_logits(model, batch), batch["labels"]))

    def metrics(self) -> Metrics:
        """Returns a collector of the loss and the target's figures."""
        return ClassificationMetrics(self.target)

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[dict[str, JSON]]:
        """Returns the target's prediction for each row."""
        return self.target.decode(_logits(model, batch))


class ClassificationMetrics(Metrics):
    """Loss and the figures of a target."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._figures = target.figures()
        self._loss, self._count = 0.0, 0.0

    def update(self, model: nn.Module, batch: Mapping[str, Tensor]) -> None:
        """Takes one batch; rows without a label are passed over."""
        logits, labels = _logits(model, batch), batch["labels"]
        known = self._target.known(labels)
        self._loss += self._target.loss(logits, labels).item()
        self._count += self._target.count(labels)
        self._figures.update(logits[known], labels[known])

    def compute(self) -> dict[str, float]:
        """Returns ``loss`` and the target's figures.

        Raises:
            DataError: No row had a label.
        """
        if not self._count:
            raise DataError("no row has a label, so nothing can be measured", fix="add labels")
        return {"loss": self._loss / self._count, **self._figures.compute()}


def make_target(kind: Kind, options: TextClassificationOptions) -> Target:
    """Returns what is predicted, before it has seen a row.

    Raises:
        RecipeError: An option is set that this kind has no use for.
    """
    if kind == "single":
        return SingleLabel(options.labels, balanced=options.class_weights == "balanced")
    useless = ["class_weights"] if options.class_weights == "balanced" else []
    if kind == "regression" and options.labels:
        useless.append("labels")
    if useless:
        fix = f"leave it out, or set task.kind to {'single' if 'class_weights' in useless else 'single or multi'}"
        raise RecipeError(
            [
                Problem(f"task.{name} is of no use where the labels are of kind {kind}", f"task.{name}", fix=fix)
                for name in useless
            ]
        )
    return MultiLabel(options.labels) if kind == "multi" else Regression()


def _logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns float32 logits of shape ``(batch, outputs)``, whatever the precision of the model."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits: Tensor = model(**inputs).logits
    return logits.float()
