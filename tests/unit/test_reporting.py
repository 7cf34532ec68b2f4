"""What a person sees and keeps of a run."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from adaptkit.cli.quiet import quiet_libraries
from adaptkit.cli.tables import first_line, print_table
from adaptkit.hookspecs import StepRecord
from adaptkit.reporting import environment
from adaptkit.reporting.metrics_log import MetricsLog
from adaptkit.reporting.progress import ProgressReport, duration
from adaptkit.reporting.usage import folder_bytes, peak_memory_bytes


def record(step: int, **changes: Any) -> StepRecord:
    values = {"epoch": step / 10, "loss": 0.5, "count": 8, "tokens": 100, "learning_rate": 1e-3, "grad_norm": 1.0}
    return StepRecord(step, **{**values, "seconds": 0.1, **changes})


# -- progress ----------------------------------------------------------------------------------------


def reported(steps: int, *, terminal: bool = False, **options: Any) -> str:
    """Returns what a run of 20 steps prints, of which `steps` are done."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    report = ProgressReport(console, 20, **options)
    for step in range(1, steps + 1):
        report.step(record(step))
    report.evaluated(steps, {"eval/loss": 0.25}, best=True)
    report.close()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_the_first_step_is_reported_at_once_and_then_one_line_an_interval() -> None:
    first, evaluated = reported(15, interval_seconds=3600).splitlines()
    assert first.startswith("step 1/20  ")
    assert evaluated == "step 15/20  eval/loss 0.2500  (best so far)"


def test_a_line_has_place_time_left_loss_rate_and_learning_rate() -> None:
    line = reported(5, interval_seconds=0).splitlines()[4]
    assert line == "step 5/20  2s left  epoch 0.50  loss 0.5000  1,000 tokens/s  lr 1.0e-03"


def test_a_line_is_never_broken_in_a_file() -> None:
    console = Console(file=io.StringIO(), width=20)
    ProgressReport(console, 10).evaluated(1, {f"eval/{name}": 0.5 for name in "abcdefgh"}, best=False)
    assert isinstance(console.file, io.StringIO)
    assert len(console.file.getvalue().splitlines()) == 1


def test_on_a_terminal_there_is_a_bar_and_evaluations_stay_above_it() -> None:
    shown = reported(15, terminal=True, interval_seconds=0)
    assert "━" in shown
    assert "step 15/20  eval/loss 0.2500  (best so far)" in shown
    assert "step 1/20" not in shown


def test_a_record_without_duration_is_no_division_by_zero() -> None:
    console = Console(file=io.StringIO())
    ProgressReport(console, 10, interval_seconds=0).step(record(1, seconds=0.0))
    assert isinstance(console.file, io.StringIO)
    assert "0 tokens/s" in console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (3599.7, "1h00m"),
        (7620, "2h07m"),
        (360000, "100h00m"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# -- metrics.jsonl -----------------------------------------------------------------------------------


def test_every_line_of_the_log_is_one_object(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(1, {"train/loss": 0.5})
    log.write(1, {"eval/loss": 0.25})
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "train/loss": 0.5}, {"step": 1, "eval/loss": 0.25}]


def test_a_resumed_run_drops_what_it_will_log_again_and_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 6):
        log.write(step, {"train/loss": 1 / step})
    whole = path.read_text(encoding="utf-8").splitlines()
    path.write_bytes(path.read_bytes() + b"\xff\x00\n" + b'{"step": 6, "tra')
    MetricsLog(path, after_step=3).write(4, {"train/loss": 0.25})
    assert path.read_text(encoding="utf-8").splitlines() == whole[:4]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_never_logged(tmp_path: Path, value: float) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        log.write(1, {"train/loss": value})
    assert not (tmp_path / "metrics.jsonl").exists()


# -- usage -------------------------------------------------------------------------------------------


def test_the_size_of_a_folder_is_that_of_all_files_below(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"12345")
    (tmp_path / "y").write_bytes(b"678")
    assert folder_bytes(tmp_path) == 8


def test_peak_memory_without_a_gpu_is_the_resident_memory_of_this_process() -> None:
    device: Any = SimpleNamespace(type="cpu")
    assert 5e6 < peak_memory_bytes(device) < 1e12


# -- tables ------------------------------------------------------------------------------------------


def test_a_table_wraps_within_its_columns_and_leaves_empty_ones_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table(("NAME", "NOTHING", "TEXT"), [("a-name", "", "word " * 20), ("b", "", "[bold] :smile: short")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "NAME    TEXT"
    assert max(map(len, lines)) <= 40
    assert sum(line.count("word") for line in lines) == 20
    assert lines[-1] == "b       [bold] :smile: short"


def test_a_class_without_a_docstring_is_described_by_its_module() -> None:
    class Silent:
        pass

    class Documented:
        """Has ``code`` in it.

        And more.
        """

    assert first_line(Documented) == "Has code in it."
    assert first_line(Silent) == "What a person sees and keeps of a run."
    assert first_line(lambda: None) == ""


# -- other libraries ---------------------------------------------------------------------------------


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the command line silence other libraries, and takes that back."""
    for name in (
        "HF_HUB_VERBOSITY",
        "TORCH_CPP_LOG_LEVEL",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS",
        "TRANSFORMERS_VERBOSITY",
    ):
        monkeypatch.setenv(name, "kept")
    monkeypatch.setattr(sys, "warnoptions", [])
    loggers = (logging.getLogger(), logging.getLogger("adaptkit"))
    before = [list(logger.handlers) for logger in loggers]
    with warnings.catch_warnings():
        quiet_libraries()
        quiet_libraries()
        yield
    for logger, handlers in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers


@pytest.mark.usefixtures("quiet")
def test_a_warning_of_adaptkit_is_one_line_and_one_of_another_library_none(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("transformers.modeling").warning("some weights were not initialised")
    logging.getLogger("adaptkit.somewhere").warning("the run in %s is finished", "runs/x")
    assert capsys.readouterr().err == "warning: the run in runs/x is finished\n"


@pytest.mark.usefixtures("quiet")
def test_python_warnings_are_shown_for_adaptkit_and_its_plugins_alone() -> None:
    with warnings.catch_warnings(record=True) as caught:
        for module in ("torch.nn", "adaptkit.training", "adaptkit_bias"):
            warnings.warn_explicit(f"of {module}", UserWarning, "x.py", 1, module=module)
    assert [str(warning.message) for warning in caught] == ["of adaptkit.training", "of adaptkit_bias"]


# -- the installation --------------------------------------------------------------------------------


def distribution(site: Path, name: str, version: str) -> None:
    """Writes what pip leaves behind of an installed distribution."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of distributions that is searched first; nothing heavy is imported."""
    monkeypatch.setenv("ADAPTKIT_DISABLE_PLUGINS", "all")
    monkeypatch.setattr(environment, "IMPORTED", ())
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("site")
def test_an_installation_as_the_project_pins_it_has_no_problem() -> None:
    assert list(environment.problems()) == []


def test_a_version_below_the_lower_bound_is_named_with_the_command_that_repairs_it(site: Path) -> None:
    distribution(site, "torch", "2.4.1")
    (problem,) = environment.problems()
    assert problem.found == "torch is 2.4.1"
    assert problem.allowed
    assert problem.fix == f'pip install "torch{problem.allowed}"'
    assert ("torch", "2.4.1", problem.allowed) in list(environment.versions())


def test_the_distribution_of_somebody_else_that_shares_our_package_is_noticed(site: Path) -> None:
    distribution(site, "adaptkit", "0.9")
    (problem,) = environment.problems()
    assert "the distribution 'adaptkit' 0.9 is installed" in problem.found
    assert problem.where == str(site / "adaptkit")
    assert problem.fix
    assert "pip uninstall adaptkit," in problem.fix
    assert "--force-reinstall --no-deps adaptkit-train" in problem.fix


def test_a_library_that_cannot_be_imported_is_a_problem_with_its_reason(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "IMPORTED", ("peft",))
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    (site / "peft.py").write_text("raise OSError('libsomething.so: cannot open')\n", encoding="utf-8")
    (problem,) = environment.problems()
    assert problem.found == "peft cannot be imported: OSError: libsomething.so: cannot open"
