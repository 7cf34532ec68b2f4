"""Quantised bases on the disk, so that the next run need not quantise them again.

An entry is a folder of safetensors and JSON, named after what decides its contents, with a ``manifest.json`` of the
size and the sha256 of every other file. It is written aside and renamed into place. One whose manifest does not fit
does not exist: it is made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from adaptkit.locks import sole_writer

logger = logging.getLogger(__name__)

MANIFEST: Final = "manifest.json"
FORMAT: Final = {"format": "adaptkit-quantized-base", "version": 1}
STAGED: Final = ".tmp-"
# Seconds after which what a killed run left behind is taken for that.
ABANDONED_AFTER: Final = 24 * 3600


def cache_root() -> Path:
    """Returns the folder of all entries: in ``ADAPTKIT_CACHE``, else where caches of a user are (XDG)."""
    own, users = os.environ.get("ADAPTKIT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    base = Path(own) if own else Path(users or "~/.cache") / "adaptkit"
    return base.expanduser() / "quantized"


def entry_folder(decides: Mapping[str, Any]) -> Path:
    """Returns the folder of the entry with these contents, which need not be there.

    Args:
        decides: Whatever the contents follow from; plain values.
    """
    text = json.dumps([FORMAT, decides], sort_keys=True)
    return cache_root() / hashlib.sha256(text.encode()).hexdigest()[:32]


def is_whole(entry: Path) -> bool:
    """Returns whether an entry is there as it was written; every byte is read."""
    try:
        manifest = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest == _manifest(entry))
    except (OSError, ValueError):
        return False


@contextmanager
def made_once(entry: Path) -> Iterator[None]:
    """Lets a process make an entry while others that need it wait, to read it then.

    Where the cache cannot be written there is nothing to wait for: everybody makes what they need.
    """
    with ExitStack() as stack:
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            lock = entry.with_name(f".lock-{entry.name}")
            stack.enter_context(sole_writer(lock, waits_for="the quantised base"))
        except OSError as error:
            logger.debug("the cache of quantised bases has no lock: %s", error)
        yield


def write_entry(entry: Path, save: Callable[[Path], None]) -> None:
    """Writes an entry, as a whole or not at all. Where that fails there is a warning: the run does not need it.

    Args:
        entry: As `entry_folder` gave it; what is left of a damaged one is replaced.
        save: Writes the files into the folder that it is given.
    """
    from safetensors import SafetensorError

    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(entry.parent)
        staging = Path(tempfile.mkdtemp(prefix=STAGED, dir=entry.parent))
        try:
            save(staging)
            (staging / MANIFEST).write_text(json.dumps(_manifest(staging), indent=1) + "\n", encoding="utf-8")
            if not is_whole(entry):  # Another run may have been faster.
                shutil.rmtree(entry, ignore_errors=True)
                staging.rename(entry)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        logger.warning("the quantised base is not kept for the next run: %s", error)


def _manifest(folder: Path) -> dict[str, Any]:
    """Returns what the manifest of a folder says, from the files that are there."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST:
            with path.open("rb") as file:
                files[path.name] = {
                    "size": path.stat().st_size,
                    "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
                }
    return {**FORMAT, "files": files}


def _remove_abandoned(root: Path) -> None:
    """Removes what runs left behind that were killed while they wrote."""
    for folder in root.glob(f"{STAGED}*"):
        if time.time() - folder.stat().st_mtime > ABANDONED_AFTER:
            shutil.rmtree(folder, ignore_errors=True)
