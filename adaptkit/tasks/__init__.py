"""The built-in tasks, registered like anyone's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from adaptkit.task import Task


@hookimpl
def adaptkit_register_tasks(register: Callable[[type[Task[Any]]], None]) -> None:
    """Offers the tasks of this package."""
    from adaptkit.tasks.causal_lm import CausalLM
    from adaptkit.tasks.masked_lm import MaskedLM
    from adaptkit.tasks.seq2seq import Seq2Seq
    from adaptkit.tasks.sft import Sft
    from adaptkit.tasks.span_corruption import SpanCorruption
    from adaptkit.tasks.text_classification import TextClassification
    from adaptkit.tasks.token_classification import TokenClassification

    register(CausalLM)
    register(MaskedLM)
    register(Seq2Seq)
    register(Sft)
    register(SpanCorruption)
    register(TextClassification)
    register(TokenClassification)
