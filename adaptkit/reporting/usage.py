"""What a run took: memory and disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GIB = 2**30


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the most memory that was in use at once: of the GPU where there is one, else resident in this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def peak_comparison(planned: int, measured: int) -> str:
    """Returns a line that holds the peak that was planned against the one that was measured, both in bytes."""
    off = 100 * (planned / measured - 1)
    return f"peak memory: {measured / GIB:.2f} GiB measured, {planned / GIB:.2f} GiB planned ({off:+.1f} %)"


def folder_bytes(folder: Path) -> int:
    """Returns the size of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
