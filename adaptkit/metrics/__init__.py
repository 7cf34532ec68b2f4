"""The built-in text metrics, registered like anyone's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from adaptkit.metric import TextMetric


@hookimpl
def adaptkit_register_metrics(register: Callable[[type[TextMetric]], None]) -> None:
    """Offers the metrics of this package."""
    from adaptkit.metrics.texts import Bleu, Chrf, ExactMatch, Rouge

    for cls in (Bleu, Chrf, ExactMatch, Rouge):
        register(cls)
