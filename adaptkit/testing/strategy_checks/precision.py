"""Bases that are stored in fewer bits."""

from __future__ import annotations

import torch

from adaptkit.recipe import Precision
from adaptkit.testing.check import check, needs
from adaptkit.testing.strategy_checks.training import STEPS, _assert_base_is_kept
from adaptkit.testing.subject import Subject
from adaptkit.testing.trial import some

# Shares of the loss in fp32. Random weights of standard deviation 0.1 are coarse in NF4.
CLOSE: dict[Precision, float] = {"bf16": 0.02, "nf4": 0.3}


def _own_precision(subject: object) -> str | None:
    assert isinstance(subject, Subject)
    precision = subject.make().base_precision()
    return f"the strategy stores the base as {precision}" if precision else None


@check(_own_precision)
def check_bf16_base(subject: Subject) -> None:
    """On a base in bf16 it trains, in fp32, from about the same loss."""
    _assert_trains(subject, "bf16")


@check(_own_precision, needs("quantized_base"))
def check_nf4_base(subject: Subject) -> None:
    """On a base in NF4 it trains, in fp32, from about the same loss, and the packed weights stay as they are."""
    _assert_trains(subject, "nf4")
    if not subject.capabilities.changes_base:
        _assert_base_is_kept(subject.trial(precision="nf4"))


def _assert_trains(subject: Subject, precision: Precision) -> None:
    trial = subject.trial(precision=precision)
    other = sorted(name for name, p in trial.job.trainable().items() if p.dtype != torch.float32)
    assert not other, f"these train and are not fp32: {some(other)}"
    whole = subject.trial()
    loss, wanted = (each.evaluate()["loss"] for each in (trial, whole))
    off = abs(loss - wanted) / abs(wanted)
    assert off <= CLOSE[precision], f"on a base in {precision} the first loss is {off:.0%} off that in fp32"
    trial.step(STEPS)
