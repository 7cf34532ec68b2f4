"""A finished run as an ordinary model folder, so that the next run, or another library, can start from it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from adaptkit.artifact.folder import RunFolder, write_json
from adaptkit.artifact.run import Run
from adaptkit.artifact.saving import PROVENANCE
from adaptkit.errors import ModelError
from adaptkit.locks import sole_writer
from adaptkit.models.base.family import read_json
from adaptkit.models.base.local import check_local, is_run
from adaptkit.recipe import ModelSpec, Precision, Recipe
from adaptkit.recipe.problems import shortened

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from adaptkit.models.building import AdaptedModel
    from adaptkit.task import Task

# How sentence-transformers says which pooling a model was trained with; `models.classifier` reads it.
POOLING_FILE = Path("1_Pooling") / "config.json"
POOLING_KEYS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
# What the state of a task says of its rows, not of what the outputs of its head mean.
OF_THE_ROWS = frozenset({"counts", "paired", "range"})


def check_base(spec: ModelSpec) -> None:
    """Checks that a recipe's base can be had, as far as that is seen without a network. Imports no torch.

    Raises:
        ModelError: There is no such model, or the run that is named cannot be a base.
        CheckpointError: The run that is named is damaged.
    """
    check_local(spec)
    if is_run(spec.name) and not _is_fresh(Path(spec.name)):
        _check_mergeable(Run(Path(spec.name)))


def check_head(spec: ModelSpec, task: Task[Any]) -> None:
    """Checks that a head that is to be kept means what the task needs. Imports no torch.

    Args:
        spec: The recipe's section.
        task: Has been prepared.

    Raises:
        ModelError: The base is no run, or one of another task or other labels.
    """
    if spec.head == "new":
        return
    if not is_run(spec.name):
        raise ModelError(
            f"model.head is keep, but {spec.name!r} is no run",
            where="model.head",
            allowed="keep where model.name is the folder of a finished run",
            fix="leave model.head out: a head in a model's own files is kept in any case where its labels are the same",
        )
    if why := differing(Run(Path(spec.name)), task):
        raise ModelError(
            f"the head of the run {spec.name!r} cannot be kept: {why}",
            where="model.head",
            allowed="keep for a run of the same task and labels",
            fix="leave model.head out for a new head; task.labels can name the labels in the order of the run's",
        )


def differing(run: Run, task: Task[Any]) -> str | None:
    """Returns why the head of a run does not mean what a task needs; None: it does, or the task needs none."""
    if run.task.name != task.name:
        return f"it was trained for {run.task.name}, this is {task.name}"
    if not run.head_modules:
        return None
    learned, wanted = run.task.state(), task.state()
    for key in sorted((learned.keys() | wanted.keys()) - OF_THE_ROWS):
        was, becomes = (json.dumps(state.get(key), ensure_ascii=False) for state in (learned, wanted))
        if was != becomes:
            return f"its {key} are {shortened(was)}, these are {shortened(becomes)}"
    return None


def base_spec(spec: ModelSpec) -> ModelSpec:
    """Returns the section of a recipe with a run replaced by its plain model; any other base as it is.

    Raises:
        ModelError: The run cannot be a base.
    """
    return spec.model_copy(update={"name": str(plain_model(Path(spec.name)))}) if is_run(spec.name) else spec


def on_plain_model(recipe: Recipe) -> Recipe:
    """Returns a recipe that names a model where it named a run, which becomes one if it has not yet.

    Raises:
        ModelError: The run cannot be a base.
    """
    return recipe.model_copy(update={"model": base_spec(recipe.model)})


def plain_model(folder: Path) -> Path:
    """Returns the folder of a run's plain model: config, safetensors, tokenizer, and the pooling of a pooled head.

    It is made when it is first asked for, and again when the run's tensors are no longer those that it was made of.
    A head that was made for the task is no part of it, as the next task has one of its own; it stands in a file beside
    it, for a next run that keeps it.

    Args:
        folder: Of a finished run.

    Raises:
        ModelError: The strategy of the run cannot be merged.
        CheckpointError: The run is damaged, or its own base is gone.
    """
    target = RunFolder(folder).model
    if _is_fresh(folder):
        return target
    run = Run(folder)
    _check_mergeable(run)
    try:
        with sole_writer(RunFolder(folder).lock, waits_for=f"the plain model of {str(folder)!r}"):
            if not _is_fresh(folder):  # another run, for which this one has waited, may have made it
                _make(run, target)
    except OSError as error:
        raise ModelError(
            f"the run's plain model cannot be written: {error.strerror or error}",
            where=str(target),
            fix="make room, or make the run's folder writable: a run becomes a plain model when another starts from it",
        ) from error
    return target


def _make(run: Run, target: Path) -> None:
    """Puts a run's plain model into its folder, in the place of one of other tensors."""
    folder = target.parent
    with TemporaryDirectory(prefix=".tmp-", dir=folder) as temporary:
        staged = Path(temporary) / target.name
        staged.mkdir()
        _write(run, staged)
        write_json(staged / PROVENANCE, _stamp(folder))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staged, target)


def _stamp(folder: Path) -> dict[str, Any]:
    """Returns what a plain model is made of: the sha256 of the run's tensors."""
    record = read_json(RunFolder(folder).adapter / PROVENANCE) or {}
    return {"tensors": record.get("tensors")}


def _is_fresh(folder: Path) -> bool:
    return read_json(RunFolder(folder).model / PROVENANCE) == _stamp(folder)


def _check_mergeable(run: Run) -> None:
    if run.strategy.capabilities.mergeable:
        return
    raise ModelError(
        f"the run {str(run.directory)!r} cannot be the base of another one: what {run.strategy.name!r} trained "
        "cannot become part of its base's weights",
        where="model.name",
        allowed=f"a run of a strategy that can be merged: {named(run.mergeable_strategies())}",
        fix=f"start from its own base, model: {run.recipe.model.name}, or run it again with one of these strategies",
    )


def named(strategies: Sequence[str]) -> str:
    """Returns the names of strategies, those of PEFT's methods as a number."""
    others = sum(":" in name for name in strategies)
    own = ", ".join(name for name in strategies if ":" not in name)
    return own + (f" and {others} of PEFT's methods" if others else "")


def _write(run: Run, folder: Path) -> None:
    """Writes the files of transformers into an empty folder."""
    from adaptkit.models.base.library import quiet_transformers
    from adaptkit.models.base.new_tokens import fold
    from adaptkit.models.heads.kept_head import write_head

    adapted = run.build(_storage(run))
    pooling = getattr(adapted.base.module, "pooling", None)
    merged = run.strategy.merge(adapted.model)
    write_head(adapted.base, merged, folder)
    model = _plain(merged)
    fold(model)
    if adapted.base.head_modules:
        model = model.base_model
        _check_whole(run, adapted, model)
        # Of the task's head; its config would bring its labels along.
        model.config.num_labels, model.config.problem_type = 2, None
    with quiet_transformers():
        model.to(_dtype(adapted)).save_pretrained(folder)
    adapted.base.tokenizer.save_pretrained(folder)
    if pooling in POOLING_KEYS:
        (folder / POOLING_FILE).parent.mkdir()
        modes = {key: name == pooling for name, key in POOLING_KEYS.items()}
        write_json(folder / POOLING_FILE, {"word_embedding_dimension": model.config.hidden_size, **modes})


def _storage(run: Run) -> Precision:
    """Returns the precision of the plain model: the base's, or of a quantised base that of its files.

    Added to quantised weights an update would be rounded away; the whole weights, from which they were made, take it.
    """
    if run.base_precision in ("fp32", "bf16"):
        return run.base_precision
    return "bf16" if str(getattr(run.source.config, "dtype", None)) in ("torch.bfloat16", "torch.float16") else "fp32"


def _dtype(adapted: AdaptedModel) -> Any:
    import torch

    return torch.float32 if adapted.base.precision == "fp32" else torch.bfloat16


def _plain(model: nn.Module) -> PreTrainedModel:
    """Returns the model of transformers in an adapted one: itself, or what stands under a head of ours."""
    from transformers import PreTrainedModel

    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def _check_whole(run: Run, adapted: AdaptedModel, model: Any) -> None:
    if adapted.base.family == "encoder-decoder" and not hasattr(model, "decoder"):
        raise ModelError(
            f"the run {str(run.directory)!r} cannot be the base of another one: it has the encoder alone of "
            f"{run.recipe.model.name!r}",
            where="model.name",
            fix=f"start from its own base, model: {run.recipe.model.name}",
        )
