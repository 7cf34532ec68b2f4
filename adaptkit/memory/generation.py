"""What a model that writes texts keeps: keys and values of the tokens before, in every layer, and the next logits."""

from __future__ import annotations

from typing import Any

import torch


def cache_bytes(config: Any, tokens: int, dtype: torch.dtype) -> int:
    """Returns the bytes of keys and values, of a decoder or of the decoder behind an encoder.

    Args:
        config: Of transformers.
        tokens: That are read and written, of all rows together.
        dtype: Of keys and values.
    """
    text = config.get_text_config(decoder=True)
    layers = _first(text, "num_decoder_layers", "decoder_layers", "num_hidden_layers")
    heads = _first(text, "decoder_attention_heads", "num_attention_heads")
    kept = getattr(text, "num_key_value_heads", None) or heads
    size = getattr(text, "head_dim", None) or getattr(text, "d_kv", None) or text.hidden_size // heads
    return 2 * layers * int(kept) * int(size) * tokens * dtype.itemsize


def tokens_of(options: Any, rows: int, length: int, longest_target: int) -> int:
    """Returns how many tokens are read and written at once.

    Args:
        options: Of a task that writes.
        rows: Of a batch.
        length: Of its rows, padded.
        longest_target: Tokens of the longest text of the training rows.
    """
    new = getattr(options, "max_new_tokens", None) or longest_target
    return rows * int(getattr(options, "num_beams", 1)) * (length + int(new))


def _first(config: Any, *names: str) -> int:
    return next(int(value) for name in names if (value := getattr(config, name, None)))
