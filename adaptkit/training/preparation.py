"""What a run has before its model is loaded: the base's config and tokenizer, and rows turned into token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptkit.errors import DataError, ModelError
from adaptkit.models.base.source import ModelSource, max_length, open_source
from adaptkit.models.compatibility import check_compatibility
from adaptkit.recipe import Recipe
from adaptkit.strategy import Strategy
from adaptkit.task import Features, Splits, Task


@dataclass(frozen=True)
class Preparation:
    """Everything but the model.

    Attributes:
        source: Of the base.
        max_length: Tokens that a row may have.
        train: Features of the training rows.
        evaluation: Features of the evaluation rows; may be empty.
    """

    source: ModelSource
    max_length: int
    train: list[Features]
    evaluation: list[Features]


def prepare(
    recipe: Recipe, strategy: Strategy[Any], task: Task[Any], splits: Splits, *, tokenizer_folder: Path | None = None
) -> Preparation:
    """Opens the base and turns the rows into features.

    Args:
        recipe: Names the base; a run in the place of one has been replaced by its plain model.
        strategy: May take positions for itself.
        task: Has been prepared.
        splits: The rows.
        tokenizer_folder: Where a tokenizer that is trained on the rows is kept.

    Raises:
        ModelError: There is no such base, or its tokenizer does not belong to it.
        RecipeError: The strategy or the task does not serve this family.
        DataError: Rows that cannot be used, or none that can.
    """
    source = open_source(recipe.model, texts=lambda: task.texts(splits.train), tokenizer_folder=tokenizer_folder)
    check_compatibility(recipe, strategy, task, source.family)
    length = max_length(recipe, source, strategy.extra_positions())
    train = task.features(splits.train, recipe.data, source.tokenizer, length)
    notes = list(task.notes)
    evaluation = task.features(splits.evaluation, recipe.data, source.tokenizer, length)
    task.notes = notes + [f"{note} (evaluation)" for note in task.notes[len(notes) :] if note not in notes]
    if not train:
        raise DataError("the training rows give nothing to learn from", where="data.train", fix="check the rows")
    _check_ids(source, [*train, *evaluation])
    return Preparation(source, length, train, evaluation)


def _check_ids(source: ModelSource, features: list[Features]) -> None:
    """Raises when a token id has no row in the base's embedding."""
    size = source.vocab_size
    largest = max((max(feature["input_ids"], default=0) for feature in features), default=0)
    if size is not None and largest >= size:
        raise ModelError(
            f"the tokenizer gives the token id {largest}, but the base has embeddings for {size} tokens",
            where=source.spec.name,
            allowed=f"ids below {size}",
            fix="use the tokenizer that belongs to the model; tokens to add go under model.new_tokens",
        )


def lengths(task: Task[Any], features: list[Features]) -> Mapping[str, int]:
    """Returns the tokens of the median, the 95th percentile and the longest feature."""
    ordered = sorted(task.length(feature) for feature in features)
    at = {"median": 0.5, "95th percentile": 0.95, "longest": 1.0}
    return {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in at.items()}
