"""English and Spanish verses of the Bible that say the same."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean

from fetching.archives import read_tar_members
from fetching.asset import Asset
from fetching.packages import DebianPackage
from fetching.rows import without_repeats, write_splits

HELD_OUT = {
    "validation": ("Judges", "Lamentations", "Ecclesiastes", "Romans", "James"),
    "test": ("Ruth", "Esther", "Daniel", "Acts"),
}
"""About a twentieth of the verses each; the Gospels repeat each other and stay in train."""

FEWEST_SHARED_OF_CHAPTER = 0.81
FEWEST_SHARED_OF_VERSE = 0.3
"""Shares of the words of the original (Strong's numbers) that both translations of a chapter or a verse render.

Both texts number verses alike but for a few chapters that begin elsewhere in the Spanish one, such as Job 39 and
Numbers 13: there the shares are 0.04 to 0.80, elsewhere 0.82 and more.
"""


@dataclass(frozen=True)
class Verse:
    """One verse in both languages; `shared` is the share of words of the original that both render."""

    book: str
    chapter: str
    source: str
    target: str
    shared: float


def unpack(archives: Sequence[Path], folder: Path) -> Mapping[str, int]:
    """Writes rows of `source` (English), `target` (Spanish) and `book`; whole books are held out."""
    english, spanish = (read_tar_members(archive, r".*/[on]t\.bz[svz]", within="data.tar.xz") for archive in archives)
    verses = [verse for part in ("ot", "nt") for verse in aligned(entries(english, part), entries(spanish, part))]
    distinct = without_repeats(same_in_both(verses), lambda verse: verse.source)
    splits: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for verse in distinct:
        name = next((name for name, books in HELD_OUT.items() if verse.book in books), "train")
        splits[name].append({"source": verse.source, "target": verse.target, "book": verse.book})
    return write_splits(folder, splits)


def entries(files: Mapping[str, bytes], part: str) -> list[str]:
    """Reads one testament of a SWORD module of type zText: headings and verses, in the order of the King James Bible.

    Little-endian records: `.bzs` has (offset, size, size when unpacked) of each block of the zlib-compressed `.bzz`;
    `.bzv` has (block, offset in the unpacked block, size) of each entry.

    Returns:
        OSIS markup; empty where the module has nothing.
    """
    by_name = {Path(name).name: content for name, content in files.items()}
    blocks, index, compressed = (by_name[f"{part}.bz{kind}"] for kind in "svz")
    texts = [zlib.decompress(compressed[start : start + size]) for start, size, _ in struct.iter_unpack("<III", blocks)]
    places = struct.iter_unpack("<IIH", index)
    return [texts[block][start : start + size].decode("utf-8") for block, start, size in places]


def aligned(english: Sequence[str], spanish: Sequence[str]) -> Iterator[Verse]:
    """Pairs the entries of one testament, which stand in the same order; headings name book and chapter."""
    book = chapter = ""
    for source, target in zip(english, spanish, strict=True):
        if heading := re.search(r'<milestone n="([^"]*)" type="x-usfm-h"/>', source):
            book = heading[1]
        elif heading := re.search(r'<chapter n="[^"]*" osisID="([^"]*)" sID', source):
            chapter = heading[1]
        if plain(source) and plain(target):
            yield Verse(book, chapter, plain(source), plain(target), _shared(source, target))


def plain(markup: str) -> str:
    """Returns the words without notes, titles (but those of psalms, which belong to the text) and paragraph marks."""
    without_notes = re.sub(r"<note\b.*?</note>", "", markup, flags=re.DOTALL)
    without_titles = re.sub(r'<title(?![^>]*type="psalm").*?</title>', "", without_notes, flags=re.DOTALL)
    return " ".join(re.sub(r"</title>|¶", " ", re.sub(r"<(?!/title)[^>]*>", "", without_titles)).split())


def same_in_both(verses: Sequence[Verse]) -> list[Verse]:
    """Leaves out chapters and verses that are not numbered alike, so that the two texts say different things."""
    kept = []
    for _, chapter in groupby(verses, key=lambda verse: verse.chapter):
        found = list(chapter)
        if fmean(verse.shared for verse in found) >= FEWEST_SHARED_OF_CHAPTER:
            kept += [verse for verse in found if verse.shared >= FEWEST_SHARED_OF_VERSE]
    return kept


def _shared(source: str, target: str) -> float:
    one, other = (set(re.findall(r"\b[HG]\d{4}\b", markup)) for markup in (source, target))
    return len(one & other) / max(1, min(len(one), len(other)))


ASSET = Asset(
    name="verses",
    about="verses of the King James Bible and of the Reina-Valera of 1909, both of eBible.org; archaic language",
    licence="public domain (in the United Kingdom, printing the King James Bible needs a permission of the Crown)",
    packages=(
        DebianPackage(
            name="sword-text-kjv",
            version="14.3-1",
            archive="sword-text-kjv_14.3-1_all.deb",
            sha256="9f463f28ce665f6f528fc723179722bced880a4c5485f7a41bf742838315de57",
        ),
        DebianPackage(
            name="sword-text-sparv",
            version="2.60-1",
            archive="sword-text-sparv_2.60-1_all.deb",
            sha256="5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf",
        ),
    ),
    unpack=unpack,
)
