"""Commands that are given twice at the same moment: one run writes into a folder, and whoever needs its model waits."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from forked_runs import finish, fork, start

import adaptkit
from adaptkit.artifact import merging
from adaptkit.artifact.folder import RunFolder
from adaptkit.artifact.run import Run
from adaptkit.cli.app import main
from adaptkit.models.base.quantized_cache import is_whole, made_once, write_entry
from adaptkit.recipe import Recipe, dump_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def written(recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe of twelve steps, and returns its file."""

    def write(strategy: str, output: str = "run", cached: bool = False, **options: object) -> Path:
        made = recipe(strategy, output, **{"epochs": 2, "evaluate_every": 1 / 3, "save_every": 1 / 3, **options})
        model = made.model.model_copy(update={"cache_quantized": cached})
        path = tmp_path / f"{output}.yaml"
        path.write_text(dump_recipe(made.model_copy(update={"model": model})), encoding="utf-8")
        return path

    return write


def steps_of(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["step"] for line in map(json.loads, lines) if "train/loss" in line]


def at_once(*commands: tuple[str, ...]) -> list[int]:
    """Returns the exit codes of commands that begin together, in ascending order."""
    processes = [start(*command) for command in commands]
    return sorted(finish(process) for process in processes)


def test_of_two_new_runs_in_one_folder_one_is_refused(written: Callable[..., Path], tmp_path: Path) -> None:
    command = ("run", str(written("lora")))
    assert at_once(command, command) == [0, 2]
    assert steps_of(tmp_path / "run") == list(range(1, 13))
    assert adaptkit.load(tmp_path / "run").metrics


def test_of_two_that_resume_a_killed_run_one_is_refused(written: Callable[..., Path], tmp_path: Path) -> None:
    file = str(written("lora"))
    assert finish(start("run", file, die_at=("prune_checkpoints", 2))) == -signal.SIGKILL
    assert RunFolder(tmp_path / "run").lock.is_file(), "killed with the lock in its hands"
    command = ("run", file, "--resume")
    assert at_once(command, command) == [0, 2]
    assert steps_of(tmp_path / "run") == list(range(1, 13))
    assert not RunFolder(tmp_path / "run").lock.exists()


def test_who_first_starts_from_a_run_makes_its_plain_model_and_the_others_wait(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = adaptkit.run(recipe("full", max_steps=1)).directory
    write, written_by = merging._write, []

    def slowly(run: Run, folder: Path) -> None:
        written_by.append(threading.get_ident())
        time.sleep(0.3)
        write(run, folder)

    monkeypatch.setattr(merging, "_write", slowly)
    with ThreadPoolExecutor(3) as threads:
        assert len(set(threads.map(merging.plain_model, [base] * 3))) == 1
    assert len(written_by) == 1
    assert not [entry.name for entry in base.iterdir() if entry.name.startswith(".")]


def run_with_cache(folder: str, *arguments: str) -> None:
    """Runs a command in a process that keeps quantised bases in a folder."""
    os.environ["ADAPTKIT_CACHE"] = folder
    sys.argv = ["adaptkit", *arguments]
    main()


def test_two_runs_that_first_use_a_quantised_base_write_it_once(written: Callable[..., Path], tmp_path: Path) -> None:
    files = [str(written("qlora", output, cached=True, max_steps=1)) for output in ("one", "other")]
    processes = [fork(run_with_cache, str(tmp_path / "cache"), "run", file) for file in files]
    assert [finish(process) for process in processes] == [0, 0]
    (entry,) = (tmp_path / "cache" / "quantized").iterdir()
    assert is_whole(entry)
    one, other = (adaptkit.load(tmp_path / name).metrics for name in ("one", "other"))
    assert one == other


def test_a_quantised_base_is_made_once(tmp_path: Path) -> None:
    entry, made = tmp_path / "cache" / "entry", list[Path]()

    def need(_: int) -> None:
        with made_once(entry):
            if not is_whole(entry):
                made.append(entry)
                time.sleep(0.05)
                write_entry(entry, lambda folder: (folder / "weights").touch())

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(need, range(3)))
    assert len(made) == 1
    assert list(entry.parent.iterdir()) == [entry]
