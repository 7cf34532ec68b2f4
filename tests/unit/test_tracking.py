"""Trackers get every figure, and none of them can stop a run."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import adaptkit
from adaptkit.errors import RecipeError, RunInterruptedError
from adaptkit.hookspecs import RunInfo
from adaptkit.recipe import Recipe
from adaptkit.registry import Registry
from adaptkit.reporting.tracking import TensorBoard, Trackers

MakeRecipe = Callable[..., Recipe]
Figures = dict[tuple[str, int], float]


class Notebook:
    """Keeps what it is told, and raises at one step."""

    def __init__(self, broken_at: int | None = None) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.closed, self.broken_at = 0, broken_at

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.broken_at:
            raise OSError("no route to the notebook")
        self.lines.append((step, dict(values)))

    def close(self) -> None:
        self.closed += 1


def offer(monkeypatch: pytest.MonkeyPatch, **trackers: Any) -> None:
    """Lets recipes name trackers."""
    monkeypatch.setattr(Registry, "tracker", lambda self, name: lambda run: trackers[name])


def tracked(recipe: Recipe, *names: str) -> Recipe:
    return recipe.model_copy(update={"trackers": list(names)})


def figures_in(folder: Path) -> Figures:
    """Reads the scalars of TensorBoard's event files, in the order in which they were written."""
    from tensorboardX.proto.event_pb2 import Event

    figures: Figures = {}
    for file in sorted(folder.glob("events.*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            figures |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            content = content[16 + length :]
    return figures


def figures_of_log(folder: Path) -> Figures:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {(name, line["step"]): value for line in lines for name, value in line.items() if name != "step"}


def test_a_tracker_gets_the_figures_of_the_log_and_is_closed(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = Notebook()
    offer(monkeypatch, notebook=notebook)
    run = adaptkit.run(tracked(recipe("linear-probe", max_steps=3), "notebook"))
    written = {(name, step): value for step, values in notebook.lines for name, value in values.items()}
    assert written == figures_of_log(run.directory)
    assert notebook.closed == 1


def test_one_that_fails_is_named_and_left_out_and_the_run_goes_on(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, whole = Notebook(broken_at=2), Notebook()
    offer(monkeypatch, broken=broken, whole=whole)
    console = Console(record=True, quiet=False, width=300, file=sys.stderr)
    run = adaptkit.run(tracked(recipe("linear-probe", max_steps=3), "broken", "whole"), console=console)
    assert run.results["steps"] == 3
    assert [step for step, _ in broken.lines] == [1]
    assert (broken.closed, whole.closed) == (0, 1)
    assert "the tracker 'broken' is left out from here on, because it raised OSError: no route" in console.export_text()


def test_tensorboard_shows_the_figures_of_the_log(recipe: MakeRecipe) -> None:
    run = adaptkit.run(tracked(recipe("linear-probe", max_steps=3), "tensorboard"))
    shown = figures_in(run.directory / "tensorboard")
    expected = figures_of_log(run.directory)
    assert shown.keys() == expected.keys()
    assert all(shown[key] == pytest.approx(expected[key], rel=1e-6) for key in expected)


def test_without_tensorboardx_the_run_does_not_begin(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(RecipeError, match="needs tensorboardX") as caught:
        TensorBoard(RunInfo(recipe("full"), tmp_path, total_steps=1))
    assert "adaptkit-train[track]" in str(caught.value)


def test_an_interrupted_run_closes_its_trackers(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    notebook = Notebook()
    monkeypatch.setattr(notebook, "log", lambda step, values: signal.raise_signal(signal.SIGINT))
    offer(monkeypatch, notebook=notebook)
    with pytest.raises(RunInterruptedError):
        adaptkit.run(tracked(recipe("linear-probe", max_steps=3), "notebook"))
    assert notebook.closed == 1


def test_a_run_without_trackers_says_nothing() -> None:
    said: list[str] = []
    trackers = Trackers({}, RunInfo(None, Path(), 0), said.append)  # type: ignore[arg-type]
    trackers.log(1, {"loss": 1.0})
    trackers.close()
    assert not said
