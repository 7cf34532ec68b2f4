"""The folder of a run: what is in it and where."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptkit.errors import CheckpointError, RecipeError
from adaptkit.models.family import read_json


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

    def claim(self) -> None:
        """Makes the folder for a new run.

        Raises:
            RecipeError: Something is there already; nothing is ever overwritten.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RecipeError(
                f"the output folder {str(self.path)!r} is not empty",
                where="output",
                fix="continue it with --resume, start beside it with --new, or name another folder: output=runs/NAME",
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(
                f"the output folder {str(self.path)!r} cannot be made: {error.strerror}",
                where="output",
                fix="name a folder that you may write to: output=runs/NAME",
            ) from error

    def release(self) -> None:
        """Gives the folder up where a run has left only what it began with: it ended before its first step."""
        begun_with = {self.recipe.name, f".tmp-{self.recipe.name}", self.stages.name, self.tokenizer.name}
        if self.path.is_dir() and {entry.name for entry in self.path.iterdir()} <= begun_with:
            shutil.rmtree(self.path)

    def next_free(self) -> RunFolder:
        """Returns this folder if it is free, else ``NAME-2``, ``NAME-3`` …"""
        candidate, number = self.path, 1
        while candidate.exists():
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
