"""How transformers is called: quietly, and what it raises for a model that cannot be had is one block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from adaptkit.errors import ModelError
from adaptkit.models.base.family import architectures

if TYPE_CHECKING:
    from adaptkit.recipe import ModelSpec

FILES = {
    "model": "config.json, weights in *.safetensors and a tokenizer",
    "tokenizer": "tokenizer.json or the vocabulary of a tokenizer",
}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' load report and progress bar away: new modules are reported by the run itself."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


@contextmanager
def as_model_error(spec: ModelSpec, *, tokenizer: str | None = None) -> Iterator[None]:
    """Turns what transformers raises for a model that cannot be had into one block.

    Args:
        spec: The recipe's section.
        tokenizer: What is loaded, if it is a tokenizer.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _load_error(tokenizer or spec.name, "model" if tokenizer is None else "tokenizer", error) from error


def _load_error(name: str, kind: str, error: Exception) -> ModelError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    allowed = f"a local folder with {FILES[kind]}, or a hub id that this machine can reach"
    if "trust_remote_code" in str(error):
        return ModelError(
            f"the {kind} {name!r} brings code of its own, which is never run",
            where=name,
            allowed="an architecture that transformers has itself",
            fix="choose another model",
        )
    found = f"the {kind} {name!r} cannot be loaded: {first_line}"
    if "does not recognize this architecture" in first_line:
        return ModelError(found, where=name, allowed=allowed, fix="upgrade transformers, or choose another model")
    if Path(name).is_dir():
        return ModelError(
            found, where=name, allowed=allowed, fix="fetch or save it again: a file is missing or damaged"
        )
    if name in architectures():
        new = "{name: " + name + ", init: random, tokenizer: {vocab_size: 8000}}"
        return ModelError(found, where=name, allowed=allowed, fix=f"for new weights of this architecture, model: {new}")
    fix = "check the name; without a network, name a local folder (`make assets` fetches one into assets/minilm)"
    return ModelError(found, where=name, allowed=allowed, fix=fix)
