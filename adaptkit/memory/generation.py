"""What a model that writes texts keeps: keys and values of the tokens before, in every layer, and the next logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from adaptkit.memory.trace import ACTIVATIONS, LOGITS
from adaptkit.memory.tracker import WORKSPACE, Parts
from adaptkit.task import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import Tensor

    from adaptkit.models.precision import Numerics
    from adaptkit.task import Task
    from adaptkit.training.preparation import Preparation


def writing_parts(
    evaluation: Parts, task: Task[Any], prepared: Preparation, batch: Mapping[str, Tensor], numerics: Numerics
) -> Parts:
    """Returns what there is when the last token of a batch of texts is written: weights, cache and logits."""
    rows, length = batch["input_ids"].shape
    targets = (sum(label != IGNORE_INDEX for label in row.get("labels", ())) for row in prepared.train)
    tokens = _tokens_of(task.options, rows, length, max(targets, default=0))
    dtype = torch.bfloat16 if numerics.bf16 else torch.float32
    logits = 2 * 4 * rows * (prepared.source.vocab_size or 0)  # in fp32, before and behind the processors
    written = {ACTIVATIONS: _cache_bytes(prepared.source.config, tokens, dtype), LOGITS: logits, WORKSPACE: 0}
    return Parts({**evaluation, **written})


def _cache_bytes(config: Any, tokens: int, dtype: torch.dtype) -> int:
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


def _tokens_of(options: Any, rows: int, length: int, longest_target: int) -> int:
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
