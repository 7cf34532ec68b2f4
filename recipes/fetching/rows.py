"""Rows that stand once, in splits that only their content decides."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

SEED = 0
"""Of every split into train, validation and test."""

SKETCH_SIZE = 16
SHINGLE_WORDS = 5

T = TypeVar("T")


def words(text: str) -> str:
    """Returns the text in lower case without punctuation: two texts of the same words are one."""
    return " ".join(re.findall(r"\w+", text.lower()))


def without_repeats(rows: Iterable[T], text: Callable[[T], str]) -> list[T]:
    """Keeps the first of several rows with the same words."""
    first: dict[str, T] = {}
    for row in rows:
        first.setdefault(words(text(row)), row)
    return list(first.values())


def without_near_repeats(rows: Iterable[T], text: Callable[[T], str]) -> list[T]:
    """Keeps the first of several rows that share about half of their runs of five words.

    The share is estimated by bottom-k sketches (Broder, "On the resemblance and containment of documents",
    1997): the smallest hashes of the runs of a text are a random sample of these runs, and the same run has the
    same hash in every text. Addresses and digits, in which copies of one mail differ, do not count.
    """
    kept: list[T] = []
    holders: dict[bytes, list[int]] = defaultdict(list)
    for row in rows:
        sketch = _sketch(text(row))
        shared = Counter(index for value in sketch for index in holders[value])
        if any(2 * count >= len(sketch) for count in shared.values()):
            continue
        for value in sketch:
            holders[value].append(len(kept))
        kept.append(row)
    return kept


def _sketch(text: str) -> list[bytes]:
    without_addresses = re.sub(r"\S*(?:://|@|www\.)\S*", " ", text.lower())
    found = re.findall(r"[^\W\d_]+", without_addresses)
    starts = range(max(1, len(found) - SHINGLE_WORDS + 1))
    runs = {" ".join(found[start : start + SHINGLE_WORDS]) for start in starts}
    return sorted(hashlib.blake2b(run.encode(), digest_size=8).digest() for run in runs)[:SKETCH_SIZE]


def split(
    rows: Sequence[T], text: Callable[[T], str], stratum: Callable[[T], str] = lambda row: ""
) -> dict[str, list[T]]:
    """Cuts the rows of each stratum 80 : 10 : 10, in an order that their texts and the seed alone decide.

    The order is by sha256, so it is the same for every python version and every order of the rows. A stratum of
    three rows or more has a row in each split.
    """
    splits: dict[str, list[T]] = {"train": [], "validation": [], "test": []}
    shuffled = sorted(rows, key=lambda row: hashlib.sha256(f"{SEED} {words(text(row))}".encode()).digest())
    totals = Counter(map(stratum, rows))
    seen: Counter[str] = Counter()
    for row in shuffled:
        position, total = seen[stratum(row)], totals[stratum(row)]
        seen[stratum(row)] += 1
        splits[_split_of(position, total)].append(row)
    return splits


def _split_of(position: int, total: int) -> str:
    if position == 0 or (10 * position < 8 * total and position < total - 2):
        return "train"
    return "validation" if position == 1 or (10 * position < 9 * total and position < total - 1) else "test"


def write_splits(folder: Path, splits: Mapping[str, Sequence[Mapping[str, object]]]) -> dict[str, int]:
    """Writes one JSON object a line into `train.jsonl` and so on; returns the number of rows of each."""
    for name, rows in splits.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    return {name: len(rows) for name, rows in splits.items()}
