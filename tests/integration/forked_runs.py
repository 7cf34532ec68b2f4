"""The command line in processes that are forked, so that no test waits for imports, and that can be killed anywhere.

The functions run in a child of multiprocessing's fork server, which has imported all that is heavy.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import Any

# What happens between two steps is in these files; a run may die at any line of them.
KILLED_IN = ("session.py", "loop.py", "checkpoint.py", "metrics_log.py", "saving.py", "folder.py")
HEAVY = (
    "accelerate",
    "adaptkit.cli.app",
    "adaptkit.session",
    "bitsandbytes",
    "peft",
    "sklearn.metrics",
    "torch",
    "transformers.integrations.bitsandbytes",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
)


def start(*arguments: str, die_at: int | None = None, lines: Path | None = None) -> ForkServerProcess:
    """Starts ``adaptkit ARGUMENTS`` in a process of its own.

    Args:
        arguments: Of the command line.
        die_at: The process kills itself (SIGKILL) before this line of `KILLED_IN`, counted from its first checkpoint.
        lines: Where the process writes how many such lines it ran.
    """
    return fork(_main, arguments, die_at, lines)


def fork(function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Starts a function of an importable module in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(HEAVY))
    os.environ["OMP_NUM_THREADS"] = "1"  # a thread pool does not survive a fork
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def finish(process: ForkServerProcess, seconds: float = 60) -> int:
    """Waits for a process and returns its exit code, -9 after SIGKILL."""
    process.join(seconds)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def _main(arguments: tuple[str, ...], die_at: int | None, lines: Path | None) -> None:
    from adaptkit.cli.app import main

    sys.argv = ["adaptkit", *arguments]
    counted = _count_lines(die_at)
    try:
        main()
    finally:
        sys.settrace(None)
        if lines is not None:
            lines.write_text(str(counted[0]), encoding="utf-8")


def _count_lines(die_at: int | None) -> list[int]:
    """Counts the lines that run in `KILLED_IN` from the first checkpoint on; one of them may be the last."""
    counted = [0]
    started = [False]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        path = frame.f_code.co_filename
        if "adaptkit" not in path or not path.endswith(KILLED_IN):
            return None
        started[0] = started[0] or frame.f_code.co_name == "write_checkpoint"
        counted[0] += event == "line" and started[0]
        if counted[0] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    return counted
