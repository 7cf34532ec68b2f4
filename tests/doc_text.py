"""What the documentation shows: its code blocks, the files that it spells out, its links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "recipes" / "README.md"])

_BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"`([\w/]+\.(?:py|toml))`[^`\n]*:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def title(page: Path) -> str:
    """Returns the path of a page as people name it."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Returns the fenced code blocks of a page in one language."""
    return [code for _, found, code in _BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def write_files(page: Path, folder: Path) -> Path:
    """Writes every file that a page shows under its name, and returns the folder."""
    for name, content in _FILE.findall(page.read_text(encoding="utf-8")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def commands(page: Path, program: str) -> Iterator[str]:
    """Yields every call of a program that a page shows, in code blocks and in running text, without its comment."""
    prose = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    shown = [line for block in blocks(page, "sh") for line in block.splitlines()]
    for line in (*shown, *re.findall(r"`([^`\n]+)`", prose)):
        call = re.split(r"\s+[#>]", line.strip())[0]
        if call.split(" ")[0] == program and "…" not in call:
            yield call


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yields the target of every link and picture inside the repository: a file, and an anchor or nothing."""
    prose = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            yield (page.parent / name if name else page), anchor


def anchors(page: Path) -> set[str]:
    """Returns what the headings of a page can be linked by."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
