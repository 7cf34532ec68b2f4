"""Text files."""

from __future__ import annotations

import codecs
from pathlib import Path
from shlex import quote

from adaptkit.errors import DataError
from adaptkit.task import Row


def read_text(path: Path) -> list[Row]:
    """Reads a file as one row: ``text``, all of it, and ``document``, the file's name."""
    return [Row({"text": decoded(path), "document": path.name}, str(path))]


def decoded(path: Path) -> str:
    """Returns the file's text without a byte order mark.

    Raises:
        DataError: The file is not UTF-8; with the first offending byte and the number of lines that have one.
    """
    content = path.read_bytes()
    body = content.removeprefix(codecs.BOM_UTF8)
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + len(content) - len(body)
    line = content.count(b"\n", 0, offset) + 1
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    lines = sum("\ufffd" in text for text in body.decode("utf-8", errors="replace").split("\n"))
    raise DataError(
        f"byte 0x{content[offset]:02x} at offset {offset} is not UTF-8; {lines} line(s) of the file have such bytes",
        where=f"{path}:{line}",
        allowed="UTF-8, with or without a byte order mark",
        fix="save the file as UTF-8, for example: "
        f"iconv -f {'UTF-16' if utf16 else 'WINDOWS-1252'} -t UTF-8 {quote(path.name)} > {quote('utf8-' + path.name)}",
    )
