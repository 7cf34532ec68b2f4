"""Programs that show a run's figures besides metrics.jsonl, chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from adaptkit.errors import AdaptkitError, RecipeError
from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from adaptkit.hookspecs import RunInfo, Tracker

Factory = Callable[["RunInfo"], "Tracker"]


@hookimpl
def adaptkit_register_trackers(register: Callable[[str, Factory], None]) -> None:
    """Offers the built-in trackers."""
    register("tensorboard", TensorBoard)


class TensorBoard:
    """Writes event files into the run's folder, for `tensorboard --logdir runs`.

    Args:
        run: Its folder gets a folder ``tensorboard``.

    Raises:
        RecipeError: tensorboardX is not installed.
    """

    def __init__(self, run: RunInfo) -> None:
        try:
            import tensorboardX  # noqa: F401 - used when the first figure comes
        except ImportError as error:
            raise RecipeError(
                "the tracker 'tensorboard' needs tensorboardX, which is not installed",
                where="trackers",
                fix="python -m pip install 'adaptkit-train[track]'",
            ) from error
        self._folder = run.directory / "tensorboard"
        self._writer: Any = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one figure after the other; those of later steps, which a resumed run takes again, are dropped."""
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        if self._writer is not None:
            self._writer.close()


class Trackers:
    """The trackers of one run. One that fails is left out from then on: it must not cost the run.

    Args:
        factories: By the names under which the recipe chose them.
        run: Is handed to each.
        report: Is told of one that fails.
    """

    def __init__(self, factories: Mapping[str, Factory], run: RunInfo, report: Callable[[str], None]) -> None:
        self._trackers: dict[str, Tracker] = {}
        self._report = report
        for name, factory in factories.items():
            self._guarded(name, lambda name=name, factory=factory: self._trackers.update({name: factory(run)}))  # type: ignore[misc]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hands the figures of a step to each."""
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, lambda tracker=tracker: tracker.log(step, values))  # type: ignore[misc]

    def close(self) -> None:
        """Tells each that the run is over, or interrupted."""
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, tracker.close)

    def _guarded(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except AdaptkitError:  # It says what to do: install a library.
            raise
        except Exception as error:  # Of every other kind: a network, a disk, a program of somebody else.
            self._trackers.pop(name, None)
            self._report(
                f"note: the tracker {name!r} is left out from here on, because it raised "
                f"{type(error).__name__}: {error}; metrics.jsonl has all figures"
            )
