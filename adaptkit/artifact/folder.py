"""The folder of a run: what is in it and where."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptkit.errors import CheckpointError, RecipeError
from adaptkit.locks import InUseError, sole_writer
from adaptkit.models.base.family import read_json


@dataclass(frozen=True)
class RunFolder:
    """Paths inside the folder of a run."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe with every default filled in."""
        return self.path / "recipe.yaml"

    @property
    def stages(self) -> Path:
        """The names of the stages' folders in this one, where the run has stages."""
        return self.path / "stages.json"

    @property
    def log(self) -> Path:
        """One JSON object per training step and evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        """Final figures, time and memory; it exists when the run is finished."""
        return self.path / "results.json"

    @property
    def adapter(self) -> Path:
        """What was trained, with its provenance."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """States to resume from."""
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, where one was trained on the rows."""
        return self.path / "tokenizer"

    @property
    def model(self) -> Path:
        """The run as an ordinary model, once another run has started from it."""
        return self.path / "model"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / "README.md"

    @property
    def lock(self) -> Path:
        """There while a process writes into the folder, and left behind by one that was killed."""
        return self.path / ".lock"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Makes the folder for a new run, and keeps others out of it.

        Raises:
            RecipeError: Something is there already, as nothing is ever overwritten; or another run is about to begin.
        """
        # A folder of somebody else gets no lock; in one with a lock, whoever has it is the better message.
        try:
            if not os.path.exists(self.lock):
                self._check_free()
            self.path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"the output folder {str(self.path)!r} cannot be made: {getattr(error, 'strerror', None) or error}",
                where="output",
                fix="name a folder that you may write to: output=runs/NAME",
            ) from error
        with self._locked():
            if not os.path.isfile(self.recipe):
                self._clear()
            self._check_free()
            yield

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Keeps others out of a folder whose run goes on.

        Raises:
            RecipeError: No run has begun there, or another process is at work on it.
        """
        if not os.path.isfile(self.recipe):
            raise RecipeError(
                f"there is no run to resume in {str(self.path)!r}",
                where="output",
                fix="start it without --resume, or name the folder of the run: output=runs/NAME",
            )
        with self._locked():
            yield

    def _check_free(self) -> None:
        """Raises where there is something that a new run would mix with."""
        if os.path.exists(self.path) and (not self.path.is_dir() or set(os.listdir(self.path)) - {self.lock.name}):
            raise RecipeError(
                f"the output folder {str(self.path)!r} is not empty",
                where="output",
                fix="continue it with --resume, start beside it with --new, or name another folder: output=runs/NAME",
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                stack.enter_context(sole_writer(self.lock))
            except InUseError as holder:
                raise RecipeError(
                    f"another run writes into the output folder {str(self.path)!r}",
                    where=f"{holder}, which has locked {self.lock}",
                    fix="wait until it has ended (one that was killed has), or name another folder: output=runs/NAME",
                ) from None
            except OSError as error:
                raise RecipeError(
                    f"the output folder {str(self.path)!r} cannot be written: {error.strerror}",
                    where="output",
                    fix="make it writable, or name a folder that you may write to: output=runs/NAME",
                ) from error
            yield

    def release(self) -> None:
        """Gives the folder up where a run has left only what it began with: it ended before its first step."""
        if self._has_only_begun():
            shutil.rmtree(self.path, ignore_errors=True)  # another process may have its lock there by now

    def _clear(self) -> None:
        """Removes what is left of a run that was killed before it had written its recipe."""
        if self._has_only_begun():
            self.staged_recipe.unlink(missing_ok=True)
            shutil.rmtree(self.tokenizer, ignore_errors=True)

    def _has_only_begun(self) -> bool:
        begun_with = {self.recipe, self.staged_recipe, self.stages, self.tokenizer, self.lock}
        return self.path.is_dir() and set(self.path.iterdir()) <= begun_with

    @property
    def staged_recipe(self) -> Path:
        """Where the recipe is written before it gets its name."""
        return self.path / f".tmp-{self.recipe.name}"

    def next_free(self) -> RunFolder:
        """Returns this folder if it is free, else ``NAME-2``, ``NAME-3`` …"""
        candidate, number = self.path, 1
        while os.path.exists(candidate):
            number += 1
            candidate = self.path.with_name(f"{self.path.name}-{number}")
        return RunFolder(candidate)


def last_stage(folder: Path) -> Path:
    """Returns the folder of the last stage of a run with stages; any other folder as it is.

    Raises:
        CheckpointError: The list of the stages is damaged.
    """
    listed = RunFolder(folder).stages
    if not listed.is_file():
        return folder
    names = (read_json(listed) or {}).get("stages")
    last = names[-1] if isinstance(names, list) and names else None
    if not isinstance(last, str) or last in ("", ".", "..") or "/" in last or os.sep in last:
        raise CheckpointError(
            "the list of the stages is damaged",
            where=str(listed),
            allowed='{"stages": [the names of the folders in this one, in their order]}',
            fix="restore the file, or name the folder of a stage",
        )
    return folder / last


def stages_up_to(folder: Path) -> list[Path]:
    """Returns the folders of the stages of a run up to the one in a folder; that one alone where it is no stage."""
    names = (read_json(RunFolder(folder.parent).stages) or {}).get("stages")
    if not isinstance(names, list) or folder.name not in names:
        return [folder]
    return [folder.parent / str(name) for name in names[: names.index(folder.name) + 1]]


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing: it is written aside, always under the same name, and renamed."""
    staged = path.with_name(f".tmp-{path.name}")
    with staged.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file, as a whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
