"""The built-in dataset formats, registered like anyone's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from adaptkit.hookspecs import hookimpl

if TYPE_CHECKING:
    from adaptkit.format import Format


@hookimpl
def adaptkit_register_formats(register: Callable[[type[Format]], None]) -> None:
    """Offers the formats of this package."""
    from adaptkit.formats.conversations import Alpaca, PromptCompletion, ShareGPT
    from adaptkit.formats.summaries import Summarization
    from adaptkit.formats.words import Words

    for cls in (Alpaca, PromptCompletion, ShareGPT, Summarization, Words):
        register(cls)
