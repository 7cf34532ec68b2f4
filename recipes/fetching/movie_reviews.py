"""Sentences of film reviews, positive or negative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path

from fetching.archives import read_tar_member
from fetching.asset import Asset
from fetching.packages import PythonPackage
from fetching.rows import split, without_repeats, write_splits


def unpack(archives: Sequence[Path], folder: Path) -> Mapping[str, int]:
    """Writes rows of `text` and `label`, each label cut 80 : 10 : 10."""
    snippets = read_tar_member(
        archives[0],
        "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
        within="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    )
    return write_splits(folder, split(read_reviews(snippets), itemgetter("text"), itemgetter("label")))


def read_reviews(snippets: bytes) -> list[dict[str, str]]:
    """Reads lines of ``id, mean rating in [-4, 4], text``, separated by tabs; positive is a rating above 0.

    The text stays as it is but for white space around it.
    """
    rows = []
    for line in snippets.decode("utf-8").splitlines():
        _, rating, text = line.split("\t")
        rows.append({"text": text.strip(), "label": "positive" if float(rating) > 0 else "negative"})
    return without_repeats(rows, itemgetter("text"))


ASSET = Asset(
    name="movie-reviews",
    about="sentences of film reviews, rated by at least 20 people each; of Hutto & Gilbert, VADER (ICWSM 2014), "
    "who took the sentences from Pang & Lee's rotten.tomatoes.com data",
    licence="MIT (package, C.J. Hutto)",
    packages=(
        PythonPackage(
            name="vaderSentiment",
            version="3.3.2",
            archive="vaderSentiment-3.3.2.tar.gz",
            sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        ),
    ),
    unpack=unpack,
)
