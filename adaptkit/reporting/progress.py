"""What a person sees while a run goes on: a bar on a terminal, a plain line per interval elsewhere."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from adaptkit.hookspecs import StepRecord


class ProgressReport:
    """Reports the steps of a run.

    Args:
        console: Where to; its ``is_terminal`` decides between bar and lines.
        total_steps: Of the run.
        first_step: Steps done before, where a run resumes.
        interval_seconds: Between two plain lines; the first one comes with the first step.
    """

    def __init__(
        self, console: Console, total_steps: int, *, first_step: int = 0, interval_seconds: float = 10.0
    ) -> None:
        self._console = console
        self._total = total_steps
        self._interval = interval_seconds
        self._last_line = -math.inf
        self._recent: deque[StepRecord] = deque(maxlen=50)
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),
                TextColumn("{task.description}"),
                console=console,
                transient=True,
                expand=True,
            )
            self._task = self._bar.add_task("", total=total_steps, completed=first_step)
            self._bar.start()

    def step(self, record: StepRecord) -> None:
        """Takes one optimizer step."""
        self._recent.append(record)
        if self._bar is not None:
            self._bar.update(self._task, completed=record.step, description=self._figures(record))
        elif time.monotonic() - self._last_line >= self._interval:
            self._last_line = time.monotonic()
            self._print(f"step {self._figures(record)}")

    def evaluated(self, step: int, metrics: Mapping[str, float], *, best: bool) -> None:
        """Takes one evaluation."""
        figures = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._print(f"step {step:,}/{self._total:,}  {figures}{'  (best so far)' if best else ''}")

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _figures(self, record: StepRecord) -> str:
        """Returns where the run is; time left, loss and rate are means over the last steps."""
        steps = len(self._recent)
        seconds = sum(past.seconds for past in self._recent)
        tokens = sum(past.tokens for past in self._recent)
        loss = sum(past.loss for past in self._recent) / steps
        left = duration((self._total - record.step) * seconds / steps)
        rate = tokens / seconds if seconds else 0.0
        return (
            f"{record.step:,}/{self._total:,}  {left} left  epoch {record.epoch:.2f}  loss {loss:.4f}  "
            f"{rate:,.0f} tokens/s  lr {record.learning_rate:.1e}"
        )


def duration(seconds: float) -> str:
    """Returns a duration as ``42s``, ``3m05s`` or ``2h07m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
