"""How fast LoRA training could be on this machine at best: the multiplications alone, without padding.

Floating-point operations of one training step on a BERT-like encoder whose weights are frozen. A product
with ``p`` weights costs 2p for every token that goes forward and 2p for the gradient that comes back; the
2p of a weight gradient are saved, since nothing there trains. What trains is small: rank-r updates with
r·(in + out) weights, at 6 per weight and token. Attention between the tokens of a row of length n costs
4·n²·hidden forward and twice that back, in every block. Nothing in front of the first block trains, so its
query, key and value send no gradient further back. Left out, so that it stays a floor: head, softmax,
GELU, norms, dropout, optimizer.

Operations are what binds on a CPU, not bytes. For MiniLM (6 blocks, hidden 384) in fp32 that is about
46 MFLOP a token. A forward and a backward pass read the 42.5 MB of frozen weights once each, and write
and read about 20·hidden values a token and block for the backward pass: at 1,000 tokens a pass 85 kB and
370 kB a token, or about 100 FLOP a byte, where a core of this kind runs out of bandwidth below about 10.
With 8 rows of 25 tokens a pass the weights alone are 425 kB a token, and small products run slower too.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter
from typing import Any

import torch

MATMUL_SIZE = 1536


def training_flops(config: Any, rank: int, lengths: Iterable[int]) -> float:
    """Returns the operations of one pass over rows of these lengths, forward and backward.

    Args:
        config: Of a BERT-like encoder: ``hidden_size``, ``intermediate_size``, ``num_hidden_layers``.
        rank: Of the LoRA on all six linear layers of every block.
        lengths: Tokens of every row.
    """
    hidden, inner, blocks = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    frozen = 4 * hidden * hidden + 2 * hidden * inner
    trained = rank * (4 * 2 * hidden + 2 * (hidden + inner))
    no_gradient_back = 3 * (2 * hidden * hidden + 2 * rank * hidden)
    per_token = blocks * (4 * frozen + 6 * trained) - no_gradient_back
    return float(sum(length * per_token + 12 * blocks * hidden * length**2 for length in lengths))


def matmul_speed(device: torch.device, size: int = MATMUL_SIZE, repeats: int = 5) -> float:
    """Returns the operations per second of the best of a few large fp32 products, with the threads of training."""
    a, b = torch.randn(2, size, size, device=device)
    seconds = []
    for _ in range(repeats):
        synchronize()
        started = perf_counter()
        a @ b
        synchronize()
        seconds.append(perf_counter() - started)
    return 2 * size**3 / min(seconds)


def synchronize() -> None:
    """Waits until an accelerator, if there is one, has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
