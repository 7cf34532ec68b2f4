"""The gradient of an effective batch is the same however it is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptkit.testing.check import NotApplicable, check, needs
from adaptkit.testing.subject import Subject
from adaptkit.testing.trial import ALL_TOKENS, Trial

SOME_TOKENS, ONE_ROW = 40, 1  # of a micro-batch
# Of the gradient's norm, in fp32: rounding alone was up to 2.1e-6 in these models.
TOLERANCE = 1e-5


def _trial(subject: Subject, task: str | None = None, *, checkpointing: bool = False) -> Trial:
    return subject.trial(task=task, gradient_checkpointing=checkpointing).without_dropout().move_away()


def _assert_same(found: Tensor, wanted: Tensor, how: str) -> None:
    assert found.shape == wanted.shape, f"{how}, {len(found):,} numbers get a gradient, not {len(wanted):,}"
    off = float((found - wanted).norm() / wanted.norm())
    assert off <= TOLERANCE, f"{how}, the gradient is off by {off:.1e} of its norm (allowed: {TOLERANCE:.0e})"


@check()
def check_micro_batches(subject: Subject) -> None:
    """Rows that are cut into micro-batches, padded less or not at all, give the gradient of a single batch."""
    trial = _trial(subject)
    whole = trial.gradient(trial.batches(ALL_TOKENS))
    for tokens, how in ((SOME_TOKENS, "with a few rows at a time"), (ONE_ROW, "with one row at a time")):
        _assert_same(trial.gradient(trial.batches(tokens)), whole, how)


@check(needs("packing"))
def check_packing(subject: Subject) -> None:
    """Rows that share a sequence give the gradient that they give apart."""
    if subject.base_name != "llama":
        raise NotApplicable("tried on Llama, which tells packed rows apart by their positions")
    task = next((task for task in subject.tasks() if task in ("causal-lm", "sft")), None)
    if task is None:
        raise NotApplicable("no task that packs is declared")
    trial = _trial(subject, task)
    packed = trial.batches(ALL_TOKENS, packing=True)
    assert len(packed[0]["input_ids"]) < len(trial.prepared.train)
    _assert_same(trial.gradient(packed), trial.gradient(trial.batches(ALL_TOKENS)), "packed")


@check(needs("gradient_checkpointing"))
def check_gradient_checkpointing(subject: Subject) -> None:
    """Recomputed activations give the gradient that kept ones give."""
    kept, recomputed = _trial(subject), _trial(subject, checkpointing=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wanted = kept.gradient(kept.batches(ALL_TOKENS))
        torch.manual_seed(0)
        found = recomputed.gradient(recomputed.batches(ALL_TOKENS))
    _assert_same(found, wanted, "with gradient checkpointing")
