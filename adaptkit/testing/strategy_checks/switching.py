"""The base's behaviour beside the adapted one: at the start, switched off, merged."""

from __future__ import annotations

from torch import Tensor

from adaptkit.testing.check import check, lacks, needs
from adaptkit.testing.strategy_checks.training import STEPS
from adaptkit.testing.subject import Subject
from adaptkit.testing.trial import differing, some

EXACT, MERGED = 1e-5, 1e-4  # of the largest logit, in fp32


def _off(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        raise AssertionError(f"there are {found.numel():,} logits, not {wanted.numel():,}")
    return float((found - wanted).abs().max() / wanted.abs().max())


@check(needs("starts_as_base"))
def check_starts_as_base(subject: Subject) -> None:
    """Before the first step the model gives the base's logits."""
    trial = subject.trial()
    off = _off(trial.logits(), trial.logits(trial.plain_base()))
    assert off <= EXACT, f"before the first step the logits are off by {off:.1e} of the largest"


@check(needs("can_disable"))
def check_disabled(subject: Subject) -> None:
    """Within `disabled` the model gives the base's logits, afterwards its own again."""
    trial = subject.trial().move_away()
    trial.step(STEPS)
    before, base = trial.logits(), trial.logits(trial.plain_base())
    assert _off(before, base) > EXACT or before.shape != base.shape, "the adapted model computes what the base does"
    with trial.strategy.disabled(trial.model):
        off = _off(trial.logits(), base)
    assert off <= EXACT, f"switched off, the logits differ from the base's by {off:.1e} of the largest"
    assert _off(trial.logits(), before) == 0, "after `disabled` the model does not compute what it did before"


@check(lacks("can_disable"))
def check_disabling_is_refused(subject: Subject) -> None:
    """What cannot be switched off says so."""
    trial = subject.trial()
    try:
        with trial.strategy.disabled(trial.model):
            pass
    except NotImplementedError:
        return
    raise AssertionError("disabled() works; declare Capabilities(can_disable=True)")


@check(needs("mergeable"))
def check_merged(subject: Subject) -> None:
    """Merged, a plain model of the base's own tensors gives the adapted model's logits."""
    trial = subject.trial().move_away()
    trial.step(STEPS)
    before = trial.logits()
    base = {name: tuple(tensor.shape) for name, tensor in trial.plain_base().named_parameters()}
    merged = trial.strategy.merge(trial.model)
    off = _off(trial.logits(merged), before)
    assert off <= MERGED, f"merged, the logits are off by {off:.1e} of the largest"
    found = {name: tuple(tensor.shape) for name, tensor in merged.named_parameters()}
    other = sorted(name for name in base.keys() | found.keys() if base.get(name) != found.get(name))
    assert not other, f"merged, these are not the base's parameters: {some(other)}"


@check(lacks("mergeable"))
def check_merging_is_refused(subject: Subject) -> None:
    """What cannot be merged says so."""
    trial = subject.trial()
    try:
        trial.strategy.merge(trial.model)
    except NotImplementedError:
        before = {name: copy for name, (_, copy) in trial.base_tensors.items()}
        now = {name: tensor for name, (tensor, _) in trial.base_tensors.items()}
        assert not differing(before, now), "the refused merge has changed the base"
        return
    raise AssertionError("merge() works; declare Capabilities(mergeable=True)")
