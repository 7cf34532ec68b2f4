"""Tiny bases with random weights: BERT, GPT-2, Llama with grouped queries, T5. Two layers, hidden size 128."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from adaptkit.recipe import TokenizerTraining
from adaptkit.strategy import Family
from adaptkit.testing.rows import TEXT, rows_by_task

VOCABULARY = 480
SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


@dataclass(frozen=True)
class TinyBase:
    """What a tiny base is.

    Attributes:
        family: Of its architecture.
        model_type: As transformers calls the architecture.
        config: Its sizes; no dropout, so that what is computed twice is the same twice.
        task: On which strategies are tried.
    """

    family: Family
    model_type: str
    config: Mapping[str, Any]
    task: str


BASES: Mapping[str, TinyBase] = {
    "bert": TinyBase(
        "encoder",
        "bert",
        {**SIZES, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "text-classification",
    ),
    "gpt2": TinyBase(
        "decoder",
        "gpt2",
        {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_inner": 128, "n_positions": 64}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "text-classification",
    ),
    "llama": TinyBase(
        "decoder", "llama", {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64}, "causal-lm"
    ),
    "t5": TinyBase(
        "encoder-decoder",
        "t5",
        {"d_model": 128, "num_layers": 2, "num_heads": 4, "d_kv": 32, "d_ff": 128, "dropout_rate": 0.0}
        | {"feed_forward_proj": "gated-gelu"},  # At the kink of a ReLU, rounding decides on a gradient.
        "seq2seq",
    ),
}


class Workshop:
    """Tiny bases, and rows for every built-in task, in a folder.

    Args:
        folder: Where they are written, each when it is first asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def base(self, name: str) -> str:
        """Returns the folder of a base of `BASES`: config, weights, tokenizer."""
        folder = self.folder / name
        if not folder.is_dir():
            write_base(folder, BASES[name])
        return str(folder)

    def rows(self, task: str) -> str:
        """Returns the file with the rows of a built-in task."""
        return self.write(f"{task}.jsonl", rows_by_task()[task])

    def write(self, name: str, rows: Iterable[Mapping[str, Any]]) -> str:
        """Writes rows to a file of JSON lines and returns its path."""
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)


@cache
def workshop() -> Workshop:
    """Returns the workshop of this process; its folder goes when the process ends."""
    _kept.append(tempfile.TemporaryDirectory(prefix="adaptkit-testing-"))
    return Workshop(Path(_kept[-1].name))


_kept: list[tempfile.TemporaryDirectory[str]] = []


def write_base(folder: Path, base: TinyBase) -> None:
    """Writes a model with random weights, the same each time, and a tokenizer for its family."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    from adaptkit.models.base.library import quiet_transformers
    from adaptkit.models.base.tokenizers import train_tokenizer

    classes: dict[Family, Any] = {
        "encoder": AutoModelForMaskedLM,
        "decoder": AutoModelForCausalLM,
        "encoder-decoder": AutoModelForSeq2SeqLM,
    }
    tokenizer = train_tokenizer(lambda: [TEXT], TokenizerTraining(vocab_size=VOCABULARY), base.family)
    config = AutoConfig.for_model(base.model_type, **base.config, vocab_size=VOCABULARY, initializer_range=0.1)
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    if base.family == "encoder-decoder":
        config.decoder_start_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(0)
        model = classes[base.family].from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # Biases of 0 and norms of 1 would hide what multiplies them.
                parameter.data += 0.1 * torch.randn(parameter.shape)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
