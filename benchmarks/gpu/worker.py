"""One contender in a process of its own: reads work as lines of JSON, answers each with a line of figures.

    python -m benchmarks.gpu.worker CONTENDER

A process a contender, so that none inherits another's patched classes; all alive at once, so that their imports count
for nobody. An error is an answer too: a tool that cannot do the work has a line in the table.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
import warnings
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

MARK = "figures: "


@dataclass(frozen=True)
class Figures:
    """What a contender gave.

    Attributes:
        tokens_per_second: Over the timed steps.
        peak_bytes: Most memory allocated at once, the base included.
        reserved_bytes: Most memory that the allocator held.
        first_step: Seconds from an empty device to the end of the first step, imports not counted.
        error: In place of figures.
    """

    tokens_per_second: float = 0.0
    peak_bytes: int = 0
    reserved_bytes: int = 0
    first_step: float = 0.0
    error: str = ""


def main(contender: str) -> None:
    """Works until there are no lines left."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    warnings.filterwarnings("ignore")
    import torch
    import transformers

    from benchmarks.gpu.contenders import CONTENDERS, Work

    transformers.logging.set_verbosity_error()
    train = CONTENDERS[contender]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.zeros(1, device=device)
    _answer({"ready": contender})
    for line in sys.stdin:
        values = json.loads(line)
        work = Work(**{**values, "offload": tuple(values["offload"])})
        _answer(asdict(_figures(train, work, device)))


def _figures(train: Any, work: Any, device: Any) -> Figures:
    import torch

    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        timing = train(work, device, perf_counter())
        figures = Figures(
            tokens_per_second=work.steps * work.tokens() / timing.seconds,
            peak_bytes=torch.cuda.max_memory_allocated(device) if cuda else 0,
            reserved_bytes=torch.cuda.max_memory_reserved(device) if cuda else 0,
            first_step=timing.first,
        )
    except Exception as error:  # whatever a tool raises is its result
        traceback.print_exc(file=sys.stderr)
        figures = Figures(error=f"{type(error).__name__}: {str(error)[:200]}")
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    return figures


def _answer(values: dict[str, Any]) -> None:
    print(MARK + json.dumps(values), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
