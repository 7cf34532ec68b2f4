"""The files of a run: whole or not there, and never written over."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from adaptkit.artifact.folder import RunFolder, write_json, write_text
from adaptkit.errors import RecipeError


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "notes", "old and long")
    write_text(tmp_path / "notes", "é")
    assert (tmp_path / "notes").read_text(encoding="utf-8") == "é"
    assert os.listdir(tmp_path) == ["notes"]


def test_a_write_that_dies_keeps_the_old_file_and_leaves_nothing_after_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    write_json(tmp_path / "results.json", {"steps": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            write_json(tmp_path / "results.json", {"steps": 2})
    assert '"steps": 1' in (tmp_path / "results.json").read_text(encoding="utf-8")
    write_json(tmp_path / "results.json", {"steps": 3})
    assert os.listdir(tmp_path) == ["results.json"]


def test_an_empty_or_missing_folder_can_be_claimed_and_is_empty_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with RunFolder(tmp_path / "new" / "run").claimed():
            pass
        assert os.listdir(tmp_path / "new" / "run") == []


def test_a_folder_that_a_killed_process_had_claimed_can_be_claimed(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on a machine that is gone\n", encoding="utf-8")
    with RunFolder(tmp_path).claimed():
        pass


def test_a_folder_is_claimed_or_resumed_once_at_a_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.claimed():
        write_text(folder.recipe, "strategy: lora\n")
        for opened in (folder.claimed, folder.resumed):
            with pytest.raises(RecipeError, match="another run writes into the output folder") as error, opened():
                pass
            assert f"process {os.getpid()} on {socket.gethostname()}" in str(error.value)
    with folder.resumed():
        assert folder.lock.is_file()
    assert os.listdir(folder.path) == ["recipe.yaml"]


def test_a_folder_that_is_given_up_while_it_is_locked_can_be_claimed_anew(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with ExitStack() as other:
        with folder.claimed():
            folder.release()
            other.enter_context(folder.claimed())
        assert folder.lock.is_file(), "the lock of the second one was taken for that of the first"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_holds_something_cannot_be_claimed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    if kind == "folder":
        path.mkdir()
    (path if kind == "file" else path / "notes").write_text("mine", encoding="utf-8")
    with pytest.raises(RecipeError, match="is not empty") as error, RunFolder(path).claimed():
        pass
    assert "--resume" in str(error.value)
    assert kind == "file" or os.listdir(path) == ["notes"]


def test_a_folder_with_nothing_but_the_recipe_is_given_up_and_any_other_is_kept(tmp_path: Path) -> None:
    begun, trained = RunFolder(tmp_path / "begun"), RunFolder(tmp_path / "trained")
    for folder in (begun, trained):
        with folder.claimed():
            write_text(folder.recipe, "strategy: lora\n")
            folder.tokenizer.mkdir()
            write_text(folder.tokenizer / "tokenizer.json", "{}\n")
            if folder is trained:
                write_text(trained.log, "{}\n")
            folder.release()
    assert not begun.path.exists()
    assert sorted(os.listdir(trained.path)) == ["metrics.jsonl", "recipe.yaml", "tokenizer"]
    RunFolder(tmp_path / "missing").release()


def test_a_folder_that_cannot_be_made_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for name in ("file/run", "n" * 300):
        with pytest.raises(RecipeError, match="cannot be made"), RunFolder(tmp_path / name).claimed():
            pass


def test_the_next_free_name_is_numbered_from_two(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert run.next_free() == run
    for name in ("run", "run-2"):
        (tmp_path / name).mkdir()
    assert run.next_free().path == tmp_path / "run-3"


def test_a_run_that_was_killed_before_it_had_a_recipe_leaves_its_folder_free(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.tokenizer.mkdir(parents=True)
    (folder.tokenizer / "tokenizer.json").write_text("{}")
    folder.staged_recipe.write_text("model: half a na")
    with pytest.raises(RecipeError, match="not empty"), folder.claimed():
        pass  # Without the lock of a run it is somebody's.
    folder.lock.touch()
    with folder.claimed():
        assert {entry.name for entry in folder.path.iterdir()} == {folder.lock.name}


def test_what_was_trained_is_not_cleared(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.tokenizer.mkdir(parents=True)
    (folder.path / "metrics.jsonl").write_text("{}")
    folder.lock.touch()
    with pytest.raises(RecipeError, match="not empty"), folder.claimed():
        pass
    assert folder.tokenizer.is_dir()
