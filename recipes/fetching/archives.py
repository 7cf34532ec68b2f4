"""Reads named members out of archives; nothing is ever extracted to a path that an archive chose."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from pathlib import Path

from fetching.errors import FetchError

AR_MAGIC = b"!<arch>\n"
AR_HEADER_BYTES = 60


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
    """Returns the content of a regular file in a tar archive, or in the tar archive ``within`` another archive.

    Raises:
        FetchError: There is no such member, or it is a link or a folder.
    """
    return read_tar_members(archive, re.escape(member), within=within)[member]


def read_tar_members(archive: Path, names: str, *, within: str | None = None) -> dict[str, bytes]:
    """Returns the contents of all regular files whose whole names match a pattern, by name, in one pass.

    Args:
        archive: A tar archive, or one that holds another (a Debian package is one).
        names: A regular expression.
        within: Name of the tar archive inside ``archive``.

    Raises:
        FetchError: There is no such member, or one of them is a link or a folder.
    """
    with _open_tar(archive, within) as content:
        wanted = [info for info in content if re.fullmatch(names, info.name)]
        if not wanted:
            raise _refused(archive, re.sub(r"\\(.)", r"\1", names), "is missing")
        return {info.name: _read_regular(content, info, archive) for info in wanted}


def _open_tar(archive: Path, within: str | None) -> tarfile.TarFile:
    if within is None:
        return tarfile.open(archive)
    outer = _read_ar_member if archive.suffix == ".deb" else read_tar_member
    return tarfile.open(fileobj=io.BytesIO(outer(archive, within)))


def _read_regular(content: tarfile.TarFile, info: tarfile.TarInfo, archive: Path) -> bytes:
    stream = content.extractfile(info) if info.isreg() else None  # extractfile would follow a link
    if stream is None:
        raise _refused(archive, info.name, "is not a regular file")
    return stream.read()


def _read_ar_member(archive: Path, member: str) -> bytes:
    """Reads an ar archive: a magic string, then members, each a header of 60 bytes and its content, padded to even."""
    content = archive.read_bytes()
    start = len(AR_MAGIC)
    while content.startswith(AR_MAGIC) and start + AR_HEADER_BYTES <= len(content):
        header = content[start : start + AR_HEADER_BYTES].decode("ascii", "replace")
        name, size = header[:16].rstrip(" /"), int(header[48:58])
        start += AR_HEADER_BYTES
        if name == member:
            return content[start : start + size]
        start += size + size % 2
    raise _refused(archive, member, "is missing")


def _refused(archive: Path, member: str, what: str) -> FetchError:
    return FetchError(
        f"{member} {what} in the archive.", archive, "Use the archive with the sha256 that this script names."
    )
