"""Whatever line a writer dies at, the checkpoint before or the new one is the latest, and it is whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from adaptkit.training import checkpoint, serialization
from adaptkit.training.checkpoint import latest_checkpoint, read_checkpoint, remove_leftovers, write_checkpoint

OURS = {checkpoint.__file__, serialization.__file__}
STEPS = pytest.mark.parametrize("step", [1, 2], ids=["replaces the step before", "is a new step"])


class Crash(BaseException):
    """What no handler expects."""


def at_line(count: int, files: set[str], die: Callable[[], None]) -> Callable[[FrameType, str, Any], Any]:
    """Returns a trace function that dies before the ``count``-th line that runs in the files."""
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename not in files:
            return None
        seen += event == "line"
        if seen == count and event == "line":
            die()
        return trace

    return trace


def write(folder: Path, step: int, value: str) -> None:
    write_checkpoint(folder, step, {"loop": {"value": value}, "rng": [1, 2]})


def write_and_crash(folder: Path, step: int, count: int) -> bool:
    """Writes a checkpoint, raising before the ``count``-th line; returns whether it came so far."""

    def die() -> None:
        sys.settrace(None)
        raise Crash

    sys.settrace(at_line(count, OURS, die))
    try:
        write(folder, step, "new")
    except Crash:
        return True
    finally:
        sys.settrace(None)
    return False


def check_after_crash(folder: Path, step: int) -> str:
    """Checks what is left, before and after the leftovers are removed; returns what the latest checkpoint holds."""
    latest = latest_checkpoint(folder)
    assert latest is not None
    value = read_checkpoint(latest)["loop"]["value"]
    if value == "before":
        assert latest.name.startswith("step-00000001")
    else:
        assert latest.name == f"step-{step:08d}"
    remove_leftovers(folder)
    latest = latest_checkpoint(folder)
    assert latest is not None
    assert read_checkpoint(latest)["loop"]["value"] == value
    assert {path.name for path in folder.iterdir()} <= {"step-00000001", f"step-{step:08d}"}
    write(folder, step, "again")
    assert read_checkpoint(folder / f"step-{step:08d}")["loop"]["value"] == "again"
    return str(value)


@STEPS
def test_an_exception_at_any_line_leaves_a_whole_checkpoint(tmp_path, step):
    outcomes = set()
    for count in range(1, 100_000):
        folder = tmp_path / str(count)
        write(folder, 1, "before")
        crashed = write_and_crash(folder, step, count)
        outcomes.add(check_after_crash(folder, step))
        shutil.rmtree(folder)
        if not crashed:
            break
    assert count > 100
    assert outcomes == {"before", "new"}


def kill_a_writer_at_every_line(root: Path, step: int, stride: int) -> None:
    """Forks writers that kill themselves at later and later lines, until one comes to its end."""
    for count in range(1, 100_000, stride):
        folder = root / str(count)
        write(folder, 1, "before")
        pid = os.fork()
        if pid == 0:
            sys.settrace(at_line(count, OURS | {shutil.__file__}, lambda: os.kill(os.getpid(), signal.SIGKILL)))
            write(folder, step, "new")
            os._exit(0)
        if os.waitpid(pid, 0)[1] == 0:
            return


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@STEPS
def test_sigkill_at_any_line_leaves_a_whole_checkpoint(tmp_path, step):
    # A process of its own, because this one may have threads, which do not survive a fork.
    call = f"kill_a_writer_at_every_line(Path({str(tmp_path)!r}), {step}, stride=3)"
    code = f"from pathlib import Path; import {__name__} as t; t.{call}"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, timeout=240)
    folders = sorted(tmp_path.iterdir(), key=lambda folder: int(folder.name))
    assert len(folders) > 30
    assert any(path.name.startswith(".tmp-") for folder in folders for path in folder.iterdir())
    assert {check_after_crash(folder, step) for folder in folders} == {"before", "new"}


def test_every_byte_is_on_the_disk_before_the_checkpoint_gets_its_name(tmp_path, monkeypatch):
    synced: list[int] = []
    fsync, rename = os.fsync, Path.rename

    def note(handle: int) -> None:
        fsync(handle)
        synced.append(os.fstat(handle).st_ino)

    def check(self: Path, target: Path) -> Path:
        assert {path.stat().st_ino for path in (self, *self.iterdir())} <= set(synced)
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", check)
    write(tmp_path, 1, "new")
    assert synced[-1] == tmp_path.stat().st_ino
