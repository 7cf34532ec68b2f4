"""A finished run, loaded again: ask it, measure it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from adaptkit.artifact.folder import RunFolder, last_stage, stages_up_to
from adaptkit.artifact.saving import FORMAT_VERSION, PROVENANCE, TENSORS
from adaptkit.data.digest import file_sha256
from adaptkit.data.splits import load_rows, load_split
from adaptkit.errors import CheckpointError, DataError
from adaptkit.models.base.local import is_run
from adaptkit.recipe import Recipe, parse_recipe
from adaptkit.registry import Registry, load_registry
from adaptkit.task import Row

if TYPE_CHECKING:
    from torch import Tensor

    from adaptkit.models.base.source import ModelSource
    from adaptkit.models.building import AdaptedModel, LoadedModel
    from adaptkit.recipe import Precision
    from adaptkit.strategy import JSON, Strategy
    from adaptkit.task import BaseModel, Task


# What the record of a run has in any case, and of which kind it is.
PARTS: Mapping[str, type] = {
    "recipe": dict,
    "task_state": dict,
    "tensors": str,
    "base.fingerprint": str,
    "base.precision": str,
}
RESTORE = "restore the file from a copy, or run the recipe again"


def load(path: str | Path) -> Run:
    """Loads a finished run from its folder (or from its ``adapter/`` folder alone); of one with stages the last.

    The base model is read when the run is first asked for a prediction.

    Raises:
        CheckpointError: There is no finished run, or its files are damaged.
    """
    folder = Path(path)
    last = last_stage(folder)
    if last != folder and not is_run(str(last)):
        raise CheckpointError(
            f"the run in {str(folder)!r} has not finished its last stage",
            where=str(last),
            fix=f"finish it: adaptkit run {quote(str(RunFolder(folder).recipe))} --resume",
        )
    return Run(last)


class Run:
    """A finished run.

    Attributes:
        directory: Its folder.
        recipe: As it ran.
        strategy: Adapted the model.
        task: As it was trained for.
        results: Final figures, seconds, peak memory, counted parameters.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._adapter = directory if (directory / PROVENANCE).is_file() else RunFolder(directory).adapter
        self._registry: Registry = load_registry()
        self._record = _read_record(self._adapter / PROVENANCE, directory)
        self.recipe: Recipe = parse_recipe(self._record["recipe"], resolver=self._registry)
        self.strategy: Strategy[Any] = self._registry.strategy(self.recipe.strategy.name)(self.recipe.strategy)
        self.results: dict[str, Any] = _read_json(RunFolder(directory).results) or {}
        self.task: Task[Any] = self._registry.make_task(self.recipe.task)
        try:
            self.task.load_state(self._record["task_state"])
        except (LookupError, TypeError, ValueError) as error:
            found = f"what the run has learned of its rows is damaged: {type(error).__name__}: {error}"
            raise CheckpointError(found, where=str(self._adapter / PROVENANCE), fix=RESTORE) from error

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r}, strategy={self.recipe.strategy.name!r}, metrics={self.metrics})"

    @property
    def metrics(self) -> dict[str, float]:
        """Figures of the kept step, named ``eval/...``."""
        return dict(self.results.get("metrics") or {})

    @property
    def seconds(self) -> float:
        """From reading the recipe to the saved artifact; of a stage with those before it."""
        results = [_read_json(RunFolder(folder).results) or {} for folder in stages_up_to(self.directory)]
        return sum(float(result.get("seconds", 0.0)) for result in results)

    @property
    def model(self) -> Any:
        """The adapted torch module, in eval mode."""
        return self._loaded.model

    @property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        return self.source.tokenizer

    @property
    def base(self) -> Any:
        """A fresh copy of the base with the task's untrained head, as other libraries load adapters onto it."""
        from adaptkit.models.precision import choose_numerics

        numerics = choose_numerics(self.recipe, self.strategy)
        return self.task.load_base(self.source, numerics, self.recipe.training.seed).module.eval()

    def unadapted(self) -> Run:
        """Returns this run with its base in the place of the adapted model: what was there before the training.

        Raises:
            ModelError: The base alone cannot do the task: its head was new.
            CheckpointError: The base is not the one that was adapted.
        """
        return self.on_base(self.load_base())

    def on_base(self, base: BaseModel) -> Run:
        """Returns this run with its base in the place of the adapted model.

        Args:
            base: As `load_base` gave it.

        Raises:
            ModelError: The base alone cannot do the task.
        """
        from adaptkit.models.building import base_alone

        return self._with(base_alone(self.recipe, self.strategy, self.task, self.source, base))

    def on_module(self, module: Any, base: BaseModel) -> Run:
        """Returns this run with a module in the place of the adapted model.

        Args:
            module: Of the base's structure.
            base: As `load_base` gave it.
        """
        from adaptkit.models.building import LoadedModel

        loaded = self._loaded
        return self._with(LoadedModel(module, base, loaded.numerics, loaded.max_length))

    def _with(self, loaded: LoadedModel) -> Run:
        """Returns this run with another model, of which no figures are known."""
        other = copy.copy(self)
        other.results = {}
        other.hold(loaded)
        return other

    def hold(self, loaded: LoadedModel) -> None:
        """Takes a model in place of the one that would be built when it is first asked for."""
        self._loaded = loaded

    def load_base(self) -> BaseModel:
        """Loads the base with the head that the run began with, frozen, onto the device on which it is asked.

        Raises:
            CheckpointError: The base is not the one that was adapted.
        """
        from adaptkit.models.building import load_base
        from adaptkit.models.precision import choose_numerics

        base = load_base(self.recipe, self.strategy, self.task, self.source)
        self._check_base(base)
        base.module.requires_grad_(False).to(choose_numerics(self.recipe, self.strategy).device)
        return base

    @property
    def fingerprint(self) -> str:
        """Identifies the base that was adapted."""
        fingerprint: str = self._record["base"]["fingerprint"]
        return fingerprint

    @property
    def base_precision(self) -> Precision:
        """How the base was stored."""
        precision: Precision = self._record["base"]["precision"]
        return precision

    @property
    def head_modules(self) -> tuple[str, ...]:
        """Names of the modules that were made for the task."""
        return tuple(self._record["base"].get("head_modules", ()))

    def mergeable_strategies(self) -> list[str]:
        """Returns the names of the installed strategies that can become part of their base."""
        entries = self._registry.strategies.items()
        return sorted(name for name, entry in entries if entry.value.capabilities.mergeable)

    def predict(self, texts: Sequence[str | Row]) -> list[dict[str, JSON]]:
        """Returns one prediction per text, in their order.

        Raises:
            DataError: A text is empty or no text at all.
        """
        rows = [
            text if isinstance(text, Row) else Row(self.task.from_text(text), f"text {i}")
            for i, text in enumerate(texts, 1)
        ]
        self.task.check(rows, labelled=False)
        from adaptkit.training.evaluation import each_batch, inference

        loaded, features = self._loaded, self._features(rows, labelled=False)
        predictions: list[dict[str, JSON]] = [{}] * len(rows)
        answers = each_batch(
            lambda batch: self.task.predict(loaded.model, batch),
            self.task,
            features,
            self.tokenizer,
            loaded.numerics,
            self.recipe.training.pass_tokens,
        )
        with inference(loaded.model, loaded.numerics):
            for indices, answered in answers:
                for index, prediction in zip(indices, answered, strict=True):
                    echo = {role: rows[index].values[role] for role in self.task.echoed_roles}
                    predictions[index] = {**echo, **prediction}
        return predictions

    def predict_file(self, source: str) -> list[dict[str, JSON]]:
        """Returns one prediction per row of a data file; it needs no label column."""
        return self.predict(self._rows(source, labelled=False))

    def evaluate(self, source: str | None = None) -> dict[str, float]:
        """Returns the task's figures over a data file; default: the recipe's test split, else its evaluation split.

        Raises:
            DataError: The recipe names neither, or the rows cannot be used.
        """
        from adaptkit.training.evaluation import Evaluation

        rows = self._held_out() if source is None else self._rows(source, labelled=True)
        self.task.check(rows, labelled=True)
        loaded, features = self._loaded, self._features(rows, labelled=True)
        return Evaluation(
            loaded.model,
            self.task,
            features,
            self.tokenizer,
            loaded.numerics,
            self.recipe.training.pass_tokens,
        ).figures()

    @cached_property
    def source(self) -> ModelSource:
        """What the base is loaded from: its config and tokenizer, no weights."""
        from adaptkit.artifact.merging import base_spec
        from adaptkit.models.base.source import open_source

        return open_source(base_spec(self.recipe.model), tokenizer_folder=self._adapter / "tokenizer")

    @cached_property
    def _loaded(self) -> LoadedModel:
        return self.build()

    def build(self, precision: Precision | None = None, base: BaseModel | None = None) -> AdaptedModel:
        """Builds the adapted model anew and fills in what was trained.

        Args:
            precision: Storage of the base; default: as it ran.
            base: As `load_base` gave it; its tensors are shared and stay as they are. Default: it is loaded.

        Raises:
            CheckpointError: The base is not the one that was adapted, or the saved tensors are damaged.
        """
        from adaptkit.models.building import build_model
        from adaptkit.models.sharing import own, shared_copy

        recipe = self.recipe
        if precision is not None:
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"precision": precision})})
        copied = base and replace(base, module=shared_copy(base.module))
        adapted = build_model(recipe, self.strategy, self.task, self.source, base=copied)
        self._check_base(adapted.base)
        if base is not None:
            own(adapted.model, self.strategy.state(adapted.model).values(), base.module)
        self.strategy.load_state(adapted.model, self._tensors())
        adapted.model.eval()
        return adapted

    def _check_base(self, base: BaseModel) -> None:
        expected = self.fingerprint
        if base.fingerprint != expected:
            raise CheckpointError(
                f"the base model {self.recipe.model.name!r} is not the one that was adapted",
                where=str(self._adapter),
                allowed=expected,
                fix="restore the base model's files; the adapter means nothing on another one",
            )

    def _tensors(self) -> dict[str, Tensor]:
        """Reads what was trained, after it has been verified."""
        from safetensors.torch import load_file

        path = self._adapter / TENSORS
        if not path.is_file():
            raise CheckpointError("the adapter's tensors are missing", where=str(path), fix=RESTORE)
        if file_sha256(path) != self._record["tensors"]:
            found = "the adapter's tensors have changed since they were saved"
            raise CheckpointError(found, where=str(path), fix=RESTORE)
        tensors: dict[str, Tensor] = load_file(path)
        return tensors

    def _rows(self, source: str, *, labelled: bool) -> list[Row]:
        return load_rows(source, self.recipe.data, self.task, self._registry.format_classes(), labelled=labelled)

    def _held_out(self) -> list[Row]:
        """Reads the rows on which the recipe measures a run."""
        split = self.recipe.data.held_out
        if split is None:
            raise DataError("the recipe names neither a test nor an evaluation split", fix="name a file: --data FILE")
        return load_split(self.recipe.data, split, self.task, self._registry.format_classes())

    def _features(self, rows: Sequence[Row], *, labelled: bool) -> list[dict[str, Any]]:
        length = self._loaded.max_length
        return self.task.features(rows, self.recipe.data, self.tokenizer, length, labelled=labelled)


def _read_record(path: Path, directory: Path) -> dict[str, Any]:
    record = _read_json(path)
    if record is None:
        resumable = RunFolder(directory).recipe.is_file()
        raise CheckpointError(
            f"there is no finished run in {str(directory)!r}",
            where=str(path),
            fix="finish it: `adaptkit run RECIPE --resume`" if resumable else "name the folder of a run: runs/NAME",
        )
    if record.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"the run has format {record.get('format_version')!r}",
            where=str(path),
            allowed=str(FORMAT_VERSION),
            fix="load it with the version of adaptkit that wrote it",
        )
    base = record.get("base")
    parts = {**record, **{f"base.{key}": value for key, value in (base if isinstance(base, dict) else {}).items()}}
    if lacking := [part for part, kind in PARTS.items() if not isinstance(parts.get(part), kind)]:
        raise CheckpointError(f"the record lacks {', '.join(lacking)}", where=str(path), fix=RESTORE)
    return record


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the file is damaged: {error}", where=str(path)) from error
    return value if isinstance(value, dict) else None
