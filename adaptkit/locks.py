"""Files and folders that one process at a time may write.

The operating system holds a lock, on a file that is there only meanwhile, and gives it up when the process ends,
however hard: a run that was killed blocks nothing.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

LONGEST_NAME = 200


class InUseError(Exception):
    """Another process has a lock; the text says which, where it is known."""


@contextmanager
def sole_writer(lock: Path, *, waits_for: str | None = None) -> Iterator[None]:
    """Keeps other processes from writing at the same time, if they ask for the same lock.

    Args:
        lock: A file beside or in what is written; its folder is there.
        waits_for: What to wait for, in words, until another process gives the lock up; None: do not wait.

    Raises:
        InUseError: Another process has it, and nothing is to be waited for.
        OSError: The file cannot be written.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        if waits_for is None:
            raise InUseError(_holder(lock)) from None
        logger.warning("waiting for %s, at which %s is at work", waits_for, _holder(lock))
        held.acquire()
    # Where a file system has no locks, filelock lets the file itself stand for one, and keeps its own notes in it.
    own = None if isinstance(held, SoftFileLock) else _identity(lock)
    try:
        if own:
            _sign(lock)
        yield
    finally:
        # What was held may be gone, and another process may have begun anew in its place.
        if own and own == _identity(lock):
            with suppress(OSError):  # Windows removes no file that is open
                lock.unlink()
        held.release()


def _sign(lock: Path) -> None:
    """Writes down who has a lock, for a person."""
    with suppress(OSError):  # Windows lets nobody write into a file that is locked
        lock.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")


def _holder(lock: Path) -> str:
    """Returns who has a lock, as far as that is known."""
    with suppress(OSError, ValueError):
        first, *_ = lock.read_text(encoding="utf-8").splitlines() or [""]
        if first.isprintable() and first:
            return first[:LONGEST_NAME]
    return "another process"


def _identity(path: Path) -> tuple[int, int] | None:
    """Returns what tells a file from another one of its name; None: there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
