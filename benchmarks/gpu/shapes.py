"""Configs of published models, by name; the figures are those of the models' own config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

LLAMA_3 = {"vocab_size": 128256, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 131072}
GATED_GELU = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


@dataclass(frozen=True)
class Shape:
    """What a model looks like.

    Attributes:
        kind: Which language model it is.
        model_type: As transformers calls the architecture.
        config: What differs from the defaults of the architecture.
    """

    kind: Literal["causal", "masked", "seq2seq"]
    model_type: str
    config: Mapping[str, Any]


def _llama(hidden: int, inner: int, layers: int, heads: int, *, head_dim: int = 128, tied: bool = False) -> Shape:
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": head_dim,
        "tie_word_embeddings": tied,
    }
    return Shape("causal", "llama", LLAMA_3 | sizes)


SHAPES: Mapping[str, Shape] = {
    "Llama-3.2-1B": _llama(2048, 8192, 16, 32, head_dim=64, tied=True),
    "Llama-3.2-3B": _llama(3072, 8192, 28, 24, tied=True),
    "Llama-3.1-8B": _llama(4096, 14336, 32, 32),
    "Llama-3.3-70B": _llama(8192, 28672, 80, 64),
    "Qwen3-8B": Shape(
        "causal",
        "qwen3",
        {
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": False,
        },
    ),
    "ModernBERT-large": Shape(
        "masked",
        "modernbert",
        {
            "vocab_size": 50368,
            "hidden_size": 1024,
            "intermediate_size": 2624,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "max_position_embeddings": 8192,
        },
    ),
    "T5-3B": Shape(
        "seq2seq",
        "t5",
        {"vocab_size": 32128, "d_model": 2048, "d_ff": 5120, "d_kv": 64, "num_layers": 24, "num_heads": 32}
        | {"num_decoder_layers": 24, "decoder_start_token_id": 0, **GATED_GELU},  # T5 v1.1 XL
    ),
    "tiny": Shape(  # for machines without a GPU
        "causal",
        "llama",
        {
            "vocab_size": 512,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
        },
    ),
}


def make_config(shape: Shape) -> Any:
    """Returns the config of transformers, with ids of special tokens that any vocabulary has."""
    from transformers import AutoConfig

    return AutoConfig.for_model(
        shape.model_type, **shape.config, bos_token_id=1, eos_token_id=2, pad_token_id=0, use_cache=False
    )
