"""The command line in processes that are forked, so that no test waits for imports, and that can be killed anywhere.

The functions run in a child of multiprocessing's fork server, which has imported all that is heavy.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

# What happens between two steps is in these files; a run may die at any line of them.
KILLED_IN = ("session.py", "loop.py", "checkpoint.py", "metrics_log.py", "saving.py", "folder.py")
# ("line", n): before the n-th line of these files since the first checkpoint; (name, n): in a function's n-th call.
Moment: TypeAlias = tuple[str, int]
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


def start(*arguments: str, die_at: Moment | None = None, lines: Path | None = None) -> ForkServerProcess:
    """Starts ``adaptkit ARGUMENTS`` in a process of its own.

    Args:
        arguments: Of the command line.
        die_at: When the process kills itself (SIGKILL).
        lines: Where the process writes how many lines of `KILLED_IN` it ran since its first checkpoint.
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


def _main(arguments: tuple[str, ...], die_at: Moment | None, lines: Path | None) -> None:
    from adaptkit.cli.app import main

    sys.argv = ["adaptkit", *arguments]
    counts = _watch(die_at)
    try:
        main()
    finally:
        sys.settrace(None)
        if lines is not None:
            lines.write_text(str(counts["line"]), encoding="utf-8")


def _watch(die_at: Moment | None) -> Counter[str]:
    """Counts calls by function, and lines from the first checkpoint on; one of them may be the last."""
    counts: Counter[str] = Counter()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        path = frame.f_code.co_filename
        if "adaptkit" not in path or not path.endswith(KILLED_IN):
            return None
        if event == "call":
            counts[frame.f_code.co_name] += 1
        elif event == "line" and counts["write_checkpoint"]:
            counts["line"] += 1
        if die_at is not None and counts[die_at[0]] == die_at[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    return counts
