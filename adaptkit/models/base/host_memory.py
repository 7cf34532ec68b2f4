"""Memory of the host while weights are read."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# What glibc begins with, and what its own rule arrives at once blocks of 32 MiB have come and gone.
_FIRST_BYTES = 128 << 10
_LARGEST_BYTES = 32 << 20


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Lets the C library give a freed tensor back to the system at once.

    A tensor that is cast or quantised as it is read lives only until the next one is. glibc keeps such blocks of up to
    32 MiB in its heap, between the small results that stay, where the next tensor rarely fits: while 300 million bf16
    weights became NF4 that heap grew to 2 to 6 times their final size, differently each time. Mapped one by one the
    blocks go back when they are freed. Afterwards, where blocks are used again and again, they stay in the heap as
    ever. Where the C library is another one, nothing is done.
    """
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    _set_thresholds(mallopt, _FIRST_BYTES, _FIRST_BYTES)
    try:
        yield
    finally:
        _set_thresholds(mallopt, _LARGEST_BYTES, 2 * _LARGEST_BYTES)


def _set_thresholds(mallopt: Any, mapped: int, kept: int) -> None:
    """Sets from which size on a block is mapped alone, and how much free memory the heap keeps at its end; bytes."""
    mallopt(_MMAP_THRESHOLD, mapped)
    mallopt(_TRIM_THRESHOLD, kept)
