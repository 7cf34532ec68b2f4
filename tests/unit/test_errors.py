"""Errors that a person can act on, as objects and on the screen."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import sys

import pytest

from adaptkit import errors
from adaptkit.cli import app as command_line
from adaptkit.errors import AdaptkitError, DataError, PluginError, Problem, RecipeError, did_you_mean

EXIT_CODES = {
    "AdaptkitError": 1,
    "TrainingError": 1,
    "RecipeError": 2,
    "ModelError": 2,
    "DataError": 3,
    "PluginError": 4,
    "FitError": 5,
    "CheckpointError": 6,
    "RunInterruptedError": 7,
}
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AdaptkitError)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_exit_code_of_each_kind_is_as_documented(kind: type[AdaptkitError]) -> None:
    assert kind.exit_code == EXIT_CODES[kind.__name__]
    assert set(EXIT_CODES) == {kind.__name__ for kind in KINDS}


def test_a_problem_says_what_where_what_is_allowed_and_what_to_do() -> None:
    problem = Problem("r is -1", "recipe.yaml:4:6", "a whole number", "write r: 8\nor leave it out")
    assert str(problem).splitlines() == [
        "r is -1",
        "  where:   recipe.yaml:4:6",
        "  allowed: a whole number",
        "  fix:     write r: 8",
        "           or leave it out",
    ]


def test_what_is_not_known_is_left_out() -> None:
    assert str(Problem("it rains", fix="wait")) == "it rains\n  fix:     wait"


def test_an_error_of_one_problem_is_made_from_words() -> None:
    error = DataError("the text is null", where="a.jsonl:1")
    assert error.problems == (Problem("the text is null", "a.jsonl:1"),)


@pytest.mark.parametrize(
    "again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copied", "pickled"]
)
def test_an_error_survives_the_way_between_processes(again: object) -> None:
    error = RecipeError([Problem("one"), Problem("two", fix="this")])
    assert callable(again)
    other = again(error)
    assert type(other) is RecipeError
    assert other.problems == error.problems
    assert str(other) == str(error)


@pytest.mark.parametrize(("name", "hint"), [("lroa", "did you mean 'lora'?"), ("zzz", None), ("", None)])
def test_a_near_name_is_proposed_and_a_far_one_is_not(name: str, hint: str | None) -> None:
    assert did_you_mean(name, ["lora", "full"]) == hint


# -- on the screen -----------------------------------------------------------------------------------


def screen(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[object, list[str]]:
    """Returns the exit code of a command that raises, and the lines on standard error."""

    def command(arguments: list[str]) -> None:
        assert "--debug" not in arguments
        raise error

    monkeypatch.setattr(command_line, "app", command)
    monkeypatch.setattr(sys, "argv", ["adaptkit", "run", *flags])
    with pytest.raises(SystemExit) as exited:
        command_line.main()
    printed = capsys.readouterr()
    assert printed.out == ""
    return exited.value.code, printed.err.splitlines()


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_ends_the_command_with_its_exit_code_and_no_traceback(
    kind: type[AdaptkitError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = screen(kind("it went wrong", fix="do it better"), monkeypatch, capsys)
    assert code == kind.exit_code
    assert lines == ["error: it went wrong", "  fix:     do it better"]


def test_all_problems_of_an_error_are_one_block(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, lines = screen(PluginError([Problem("one", "here"), Problem("two")]), monkeypatch, capsys)
    assert lines == ["error: one", "  where:   here", "also:  two"]


def test_a_fault_of_ours_is_said_in_one_block_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = screen(ZeroDivisionError("division by zero"), monkeypatch, capsys)
    assert code == 1
    assert lines[0] == "error: unexpected ZeroDivisionError: division by zero"
    assert "--debug" in lines[1]
    assert len(lines) == 2


def test_a_full_disk_is_no_fault_of_ours(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/metrics.jsonl")
    code, lines = screen(error, monkeypatch, capsys)
    assert code == 1
    assert lines[:2] == [f"error: the system refuses: {error.strerror}", "  where:   runs/a/metrics.jsonl"]
    assert "--resume" in lines[2]


def test_debug_adds_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = screen(ZeroDivisionError("division by zero"), monkeypatch, capsys, "--debug")
    assert code == 1
    assert lines[0].startswith("Traceback")
    assert "ZeroDivisionError: division by zero" in lines
