"""A few rows for every built-in task, of words that the tokenizers of the tiny bases know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT = "the a film plot was is good great fine bad dull weak very quite and but not so they we"
WORDS = TEXT.split()
ROWS = 8
# Each text stays a row of its own, and one that a language model goes on with stays short.
TASK_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "causal-lm": {"join": False, "max_new_tokens": 8},
    "masked-lm": {"join": False},
    "span-corruption": {"join": False},
}


def rows_by_task() -> dict[str, list[dict[str, Any]]]:
    """Returns eight rows of 6 to 13 words for every task."""
    texts = [" ".join(WORDS[(3 * row + word) % len(WORDS)] for word in range(6 + row)) for row in range(ROWS)]
    labels = ["good" if row % 2 else "bad" for row in range(ROWS)]
    pairs = list(zip(texts, labels, strict=True))
    running = [{"text": text} for text in texts]
    return {
        "text-classification": [{"text": text, "label": label} for text, label in pairs],
        "token-classification": [
            {"tokens": text.split(), "tags": ["odd" if len(word) % 2 else "even" for word in text.split()]}
            for text in texts
        ],
        "causal-lm": running,
        "masked-lm": running,
        "span-corruption": running,
        "sft": [{"prompt": text, "completion": label} for text, label in pairs],
        "seq2seq": [{"source": text, "target": label} for text, label in pairs],
    }
