"""Cross-entropy over a vocabulary by chunks of rows: logits and their gradient exist for one chunk at a time.

The gradient of a chunk's logits is known as soon as they are, so it goes through the output layer at once and the
logits are dropped (as in Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models", and Liger's
fused linear cross-entropy). What is kept is the gradient of the hidden states, and of what trains in the layer.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adaptkit.models.language.output_head import OutputHead

LOGITS_BYTES = 256 * 2**20
WIDENED_BYTES = 32 * 2**20  # of fp32 numbers that are computed from logits at the same time
FULL_TILE = 128  # rows of a matrix product; with fewer a GPU is not busy


def chunk_rows(setting: int | Literal["auto"], vocabulary: int) -> int:
    """Returns the rows of a chunk; auto: as many as 256 MiB of fp32 logits hold, in whole tiles, at least one."""
    if setting != "auto":
        return setting
    return max(LOGITS_BYTES // (4 * vocabulary * FULL_TILE), 1) * FULL_TILE


def summed_loss(states: Tensor, labels: Tensor, head: OutputHead, rows: int) -> Tensor:
    """Returns the cross-entropy in nats, summed: a scalar with gradient.

    Args:
        states: ``(labels, hidden)``.
        labels: Token ids, ``(labels,)``.
        head: Makes logits of states.
        rows: Of a chunk.
    """
    trainable = head.trainable
    if not torch.is_grad_enabled() or not (states.requires_grad or trainable):
        return figures(states, labels, head, rows)[0]
    loss: Tensor = _ChunkedLoss.apply(states, labels, head, rows, *trainable)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def figures(states: Tensor, labels: Tensor, head: OutputHead, rows: int) -> tuple[Tensor, Tensor]:
    """Returns the summed cross-entropy and how often the largest logit is the label's, as scalars on the device.

    Args:
        states: As for `summed_loss`.
        labels: As for `summed_loss`.
        head: As for `summed_loss`.
        rows: As for `summed_loss`.
    """
    loss = torch.zeros((), device=states.device)
    right = torch.zeros((), dtype=torch.int64, device=states.device)
    for part in _parts(states, rows):
        chunk_loss, chunk_right = _chunk_figures(head(states[part]), labels[part])
        loss += chunk_loss
        right += chunk_right
    return loss, right


def _parts(states: Tensor, rows: int) -> list[slice]:
    return [slice(begin, begin + rows) for begin in range(0, len(states), rows)]


def _chunk_figures(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    right = (logits.argmax(dim=-1) == labels).sum()
    losses = [
        torch.nn.functional.cross_entropy(logits[part].float(), labels[part], reduction="sum")
        for part in _parts(logits, _widened_rows(logits))
    ]
    return torch.stack(losses).sum(), right


def _widened_rows(logits: Tensor) -> int:
    return max(WIDENED_BYTES // (4 * logits.shape[-1]), 1)


class _ChunkedLoss(torch.autograd.Function):
    """The loss, whose gradients are computed with it; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, labels: Tensor, head: OutputHead, rows: int, *trainable: Tensor) -> Tensor:
        loss = torch.zeros((), device=states.device)
        gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        sums: list[Tensor | None] = [None] * len(trainable)
        for part in _parts(states, rows):
            leaf = states[part].detach().requires_grad_(gradient is not None)
            chunk_loss, found = _chunk_gradients(leaf, labels[part], head, trainable)
            loss += chunk_loss
            if gradient is not None:
                gradient[part] = found.pop(0)
            sums = [_added(total, found.pop(0)) for total in sums]  # None outlives its sum: a layer's may be large.
        ctx.save_for_backward(gradient, *sums)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # In place, since a layer's gradient may be large; autograd refuses a second pass over what was changed.
        states, *trainable = (None if saved is None else saved.mul_(gradients[0]) for saved in ctx.saved_tensors)
        return states, None, None, None, *trainable


def _chunk_gradients(
    leaf: Tensor, labels: Tensor, head: OutputHead, trainable: tuple[Tensor, ...]
) -> tuple[Tensor, list[Any]]:
    """Returns the summed loss of one chunk and its gradients, of the states if they have one, and of what trains."""
    with torch.enable_grad():
        logits = head(leaf)
    loss, gradient = _cross_entropy(logits.detach(), labels, overwrite=head.forgets_logits)
    inputs = (leaf, *trainable) if leaf.requires_grad else trainable
    return loss, list(torch.autograd.grad(logits, inputs, gradient, allow_unused=True))


def _added(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """Adds the gradient of a chunk to that of those before, in fp32."""
    if more is None:
        return total
    if total is None:
        return more.to(torch.promote_types(more.dtype, torch.float32))
    return total.add_(more)


def _cross_entropy(logits: Tensor, labels: Tensor, *, overwrite: bool) -> tuple[Tensor, Tensor]:
    """Returns the summed loss and its gradient in the dtype of the logits ``(rows, vocabulary)``; sums are in fp32.

    If the logits may be overwritten, nothing else as large exists; else their gradient does. 16-bit logits become fp32
    numbers a few rows at a time.
    """
    is_whole = logits.dtype == torch.promote_types(logits.dtype, torch.float32)
    gradient = logits if overwrite else torch.empty_like(logits)
    parts = _parts(logits, len(logits) if is_whole else _widened_rows(logits))
    losses = [_write_gradient(logits[part], labels[part], gradient[part]) for part in parts]
    return torch.stack(losses).sum(), gradient


def _write_gradient(logits: Tensor, labels: Tensor, gradient: Tensor) -> Tensor:
    """Writes the gradient of a few rows, in place of their logits or beside them, and returns their summed loss."""
    is_whole = logits.dtype == torch.promote_types(logits.dtype, torch.float32)
    highest = logits.amax(dim=-1, keepdim=True).float()
    shifted = torch.sub(logits, highest, out=gradient if is_whole else None)
    place = labels.unsqueeze(-1)
    own = shifted.gather(-1, place)
    total = shifted.exp_().sum(dim=-1, keepdim=True)
    torch.div(shifted, total, out=gradient)
    # By itself, because a probability close to 1 minus 1 is nothing in 16 bits.
    gradient.scatter_(-1, place, (own.exp() / total - 1).to(gradient.dtype))
    return (total.log() - own).sum()
