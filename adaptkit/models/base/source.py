"""What is known of a base before its weights are read: config, tokenizer, family, positions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adaptkit.errors import ModelError
from adaptkit.models.base.configs import fit_to_tokenizer, load_config, meta_model, positions
from adaptkit.models.base.family import family_of
from adaptkit.models.base.local import base_fingerprint
from adaptkit.models.base.new_tokens import NewTokens, add_new_tokens
from adaptkit.models.base.tokenizers import Texts, check_tokenizer, load_tokenizer, trained_tokenizer
from adaptkit.recipe import ModelSpec, Recipe, TokenizerTraining
from adaptkit.strategy import Family

# Positions of a base that names no limit (relative positions, as T5's).
UNLIMITED_POSITIONS = 2048


@dataclass(frozen=True)
class ModelSource:
    """A base model whose weights are still on the disk, or not made yet.

    Attributes:
        spec: The recipe's section.
        config: Of transformers, with the recipe's changes; that of new weights follows the tokenizer.
        tokenizer: Fast, with a padding token, and with the recipe's new tokens.
        family: encoder, decoder or encoder-decoder.
        new_tokens: Tokens for which a pretrained base has no rows; None: there are none.
        tokenizer_folder: Where the tokenizer is that was trained for the run; None: none was.
        skeleton: Whether a model of it is made without weights, on the meta device.
    """

    spec: ModelSpec
    config: Any
    tokenizer: Any
    family: Family
    new_tokens: NewTokens | None = None
    tokenizer_folder: Path | None = None
    skeleton: bool = False

    @property
    def random(self) -> bool:
        """Whether the weights are new."""
        return self.spec.init == "random"

    @property
    def vocab_size(self) -> int | None:
        """Token ids that the model has an embedding for, those of new tokens included; None: unknown."""
        size: int | None = getattr(self.config.get_text_config(), "vocab_size", None)
        return size if size is None or self.new_tokens is None else max(size, self.new_tokens.end)

    @cached_property
    def positions(self) -> int | None:
        """Tokens that the model has positions for; None: as many as one likes."""
        return positions(self.config, self.spec)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the base, the recipe's changes included: sha256 of a folder's files, the commit of a hub model.

        A skeleton has none: its files are not read.
        """
        if self.skeleton:
            return ""
        return base_fingerprint(self.spec, self.config, self.tokenizer_folder)


def open_source(spec: ModelSpec, *, texts: Texts | None = None, tokenizer_folder: Path | None = None) -> ModelSource:
    """Reads config and tokenizer of a base; no weights.

    Args:
        spec: The recipe's section.
        texts: Gives what a new tokenizer learns from.
        tokenizer_folder: Where a tokenizer that is trained is kept; one that is there already is read.

    Raises:
        ModelError: There is no such model, the changes of its config do not fit it, or its tokenizer does not.
    """
    config = load_config(spec)
    family = family_of(config.to_dict())
    folder = None
    if isinstance(spec.tokenizer, TokenizerTraining):
        folder = tokenizer_folder
        tokenizer = trained_tokenizer(spec, spec.tokenizer, family, config, texts, folder)
    else:
        tokenizer = load_tokenizer(spec)
    new_tokens = None
    if spec.init == "random":
        tokenizer.add_tokens(spec.new_tokens)
        fit_to_tokenizer(config, tokenizer, spec)
        meta_model(config, spec)
    else:
        new_tokens = add_new_tokens(tokenizer, spec.new_tokens, config.get_text_config().vocab_size)
    source = ModelSource(spec, config, tokenizer, family, new_tokens, folder)
    check_tokenizer(source.tokenizer, source.vocab_size, spec)
    return source


def max_length(recipe: Recipe, source: ModelSource, extra_positions: int = 0) -> int:
    """Returns the tokens that a row may have: what the recipe says, at most what the base can take.

    Args:
        recipe: May ask for less.
        source: Has so many positions.
        extra_positions: Of them, those that the strategy takes.

    Raises:
        ModelError: The recipe asks for more positions than the base has, or the strategy leaves none.
    """
    limits = [
        limit
        for limit in (source.tokenizer.model_max_length, source.positions)
        if limit and limit < 10**6  # tokenizers without a limit say so with a huge number
    ]
    positions = min(limits, default=UNLIMITED_POSITIONS)
    limit = positions - extra_positions
    if limit < 1:
        raise ModelError(
            f"the strategy takes {extra_positions} positions for itself, but {recipe.model.name!r} has {positions}",
            where="strategy",
            allowed=f"fewer than {positions} virtual tokens",
            fix="lower strategy.num_virtual_tokens",
        )
    wanted = recipe.data.max_length or limit
    if limits and wanted > limit:
        raise ModelError(
            f"data.max_length is {wanted}, but {recipe.model.name!r} takes {limit} tokens",
            where="data.max_length",
            allowed=f"1 to {limit}",
            fix=f"set data.max_length to {limit} or less, or leave it out",
        )
    return wanted
