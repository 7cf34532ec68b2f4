"""What a person sees while a run goes on: a bar on a terminal, a plain line per interval elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adaptkit.hookspecs import StepRecord


class ProgressReport:
    """Reports the steps of a run.

    Args:
        console: Where to; its ``is_terminal`` decides between bar and lines.
        total_steps: Of the run.
        first_step: Steps done before, where a run resumes.
        interval_seconds: Between two plain lines.
    """

    def __init__(
        self, console: Console, total_steps: int, *, first_step: int = 0, interval_seconds: float = 10.0
    ) -> None:
        self._console = console
        self._total = total_steps
        self._interval = interval_seconds
        self._last_line = time.monotonic()
        self._recent: deque[StepRecord] = deque(maxlen=50)
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("", total=total_steps, completed=first_step)
            self._bar.start()

    def step(self, record: StepRecord) -> None:
        """Takes one optimizer step."""
        self._recent.append(record)
        if self._bar is not None:
            self._bar.update(self._task, completed=record.step, description=self._figures(record))
        elif time.monotonic() - self._last_line >= self._interval:
            self._last_line = time.monotonic()
            left = (self._total - record.step) * self._seconds_per_step()
            self._console.print(
                f"step {record.step}/{self._total}  {self._figures(record)}  {duration(left)} left", highlight=False
            )

    def evaluated(self, step: int, metrics: Mapping[str, float], *, best: bool) -> None:
        """Takes one evaluation."""
        figures = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._console.print(f"step {step}/{self._total}  {figures}{'  (best so far)' if best else ''}", highlight=False)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _figures(self, record: StepRecord) -> str:
        seconds = sum(past.seconds for past in self._recent)
        rate = sum(past.tokens for past in self._recent) / seconds if seconds else 0.0
        loss = sum(past.loss for past in self._recent) / len(self._recent)
        return f"epoch {record.epoch:.2f}  loss {loss:.4f}  lr {record.learning_rate:.1e}  {rate:,.0f} tokens/s"

    def _seconds_per_step(self) -> float:
        return sum(past.seconds for past in self._recent) / len(self._recent)


def duration(seconds: float) -> str:
    """Returns a duration as ``42s``, ``3m05s`` or ``2h07m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
