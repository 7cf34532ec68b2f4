"""One writer at a time; whoever ends, however hard, gives up what it had."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adaptkit.locks import InUseError, sole_writer

HOLD = """
import sys, time
from pathlib import Path
from adaptkit.locks import sole_writer

with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_another_process_is_kept_out_until_the_holder_is_killed(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(InUseError, match=f"process {holder.pid} on "), sole_writer(tmp_path / "lock"):
        pass
    holder.kill()
    holder.wait()
    assert (tmp_path / "lock").is_file(), "the process had no time to remove it"
    with sole_writer(tmp_path / "lock"):
        pass
    assert os.listdir(tmp_path) == []


def test_who_waits_says_for_what_and_goes_on_when_the_holder_is_killed(
    holder: subprocess.Popen[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killer = threading.Timer(0.2, holder.kill)
    killer.start()
    begun = time.monotonic()
    with sole_writer(tmp_path / "lock", waits_for="the model"):
        assert time.monotonic() - begun > 0.1
    assert f"waiting for the model, at which process {holder.pid} on " in caplog.text


def test_threads_that_wait_come_one_after_another(tmp_path: Path) -> None:
    inside, most = [], []

    def work() -> None:
        for _ in range(5):
            with sole_writer(tmp_path / "lock", waits_for="the turn"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"\x1b[2J\n"])
def test_a_lock_that_says_nothing_is_that_of_another_process(
    content: bytes, holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    (tmp_path / "lock").write_bytes(content)
    with pytest.raises(InUseError, match=r"^another process$"), sole_writer(tmp_path / "lock"):
        pass
