"""The conformance kit: each check notices the strategy that is broken in its way, and lets a sound one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import broken_strategies as broken
import pytest

from adaptkit.testing import (
    STRATEGY_CHECKS,
    NotApplicable,
    Subject,
    check_strategy,
    fronts,
    parametrize_with_checks,
)
from adaptkit.testing.subject import subjects

CHECKS = {check.name: check for check in STRATEGY_CHECKS}


def closed_form(model: Any, context: Any) -> int:
    """Two matrices of rank 2 beside each of two square layers of 128, and the head."""
    new = sum(model.get_parameter(name).numel() for name in context.new_parameters)
    return 2 * 2 * 2 * 128 + new


BROKEN: dict[str, tuple[type[broken.Sound], str]] = {
    "check_contract": (broken.Shouting, "bert"),
    "check_options": (broken.Loose, "bert"),
    "check_import": (broken.Sound, "bert"),  # This module of ours imports torch.
    "check_some_base": (broken.ServesNothing, "bert"),
    "check_meta_device": (broken.OnTheCpu, "bert"),
    "check_first_values": (broken.DrawsAnyhow, "bert"),
    "check_base_is_frozen": (broken.TrainsNorms, "bert"),
    "check_trainable_parameters": (broken.OfAnotherSize, "bert"),
    "check_everything_moves": (broken.Idle, "bert"),
    "check_base_is_kept": (broken.WritesIntoTheBase, "bert"),
    "check_loss_falls": (broken.Climbs, "bert"),
    "check_repeatable": (broken.Dices, "bert"),
    "check_two_runs": (broken.KeepsStateInTheClass, "bert"),
    "check_copy": (broken.Hooked, "bert"),
    "check_evaluation": (broken.Counting, "bert"),
    "check_resume": (broken.Forgets, "bert"),
    "check_optimizer": (broken.HalfAnOptimizer, "bert"),
    "check_extra_loss": (broken.VectorLoss, "bert"),
    "check_micro_batches": (broken.Centred, "bert"),
    "check_packing": (broken.Running, "llama"),
    "check_gradient_checkpointing": (broken.Moody, "bert"),
    "check_bf16_base": (broken.Coarse, "bert"),
    "check_nf4_base": (broken.WeightShaped, "bert"),
    "check_saved_and_loaded": (broken.LosesTheHead, "bert"),
    "check_missing_tensor": (broken.TakesLess, "bert"),
    "check_unexpected_tensor": (broken.TakesMore, "bert"),
    "check_misshapen_tensor": (broken.TakesOtherShapes, "bert"),
    "check_files": (broken.UnwritableState, "bert"),
    "check_starts_as_base": (broken.JumpsAtTheStart, "bert"),
    "check_disabled": (broken.StaysOn, "bert"),
    "check_disabling_is_refused": (broken.SwitchesUnasked, "bert"),
    "check_merged": (broken.MergesHalf, "bert"),
    "check_merging_is_refused": (broken.MergesUnasked, "bert"),
    "check_every_task": (broken.WantsAHead, "bert"),
    "check_generation": (broken.Placed, "llama"),
    "check_frozen_features": (broken.CachesTooMuch, "bert"),
    "check_virtual_tokens": (broken.ClaimsTokens, "llama"),
}


def subject(strategy: type[broken.Sound], base: str) -> Subject:
    return Subject(strategy, base_name=base, trainable_parameters=closed_form if base == "bert" else None)


def test_there_is_a_broken_strategy_for_every_check() -> None:
    assert list(BROKEN) == list(CHECKS)


@pytest.mark.parametrize("name", BROKEN)
def test_a_check_notices_what_is_broken_in_its_way(name: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - what a strategy raises itself counts too
        CHECKS[name](subject(*BROKEN[name]))
    assert not isinstance(caught.value, NotApplicable), caught.value
    assert str(caught.value)


NOT_FOR_SOUND = {
    # The module of the broken strategies imports torch.
    "check_import": "imports torch",
    "check_extra_loss": "no additional loss",
    "check_disabling_is_refused": "can_disable is declared",
    "check_merging_is_refused": "mergeable is declared",
    "check_frozen_features": "no frozen part",
}


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in NOT_FOR_SOUND])
def test_a_check_lets_a_sound_strategy_pass(name: str) -> None:
    CHECKS[name](subject(broken.Sound, BROKEN[name][1]))


@pytest.mark.parametrize("name", [name for name in NOT_FOR_SOUND if name != "check_import"])
def test_a_check_that_does_not_apply_says_why(name: str) -> None:
    with pytest.raises(NotApplicable, match=NOT_FOR_SOUND[name]):
        CHECKS[name](subject(broken.Sound, "bert"))


def test_a_family_that_is_not_declared_is_left_alone() -> None:
    with pytest.raises(NotApplicable, match="encoder-decoder models are not declared"):
        CHECKS["check_loss_falls"](subject(broken.Sound, "t5"))


# -- the fronts ----------------------------------------------------------------------------------------


class Reduced(broken.Sound):
    """Keeps the contract."""

    known_failures: ClassVar[Mapping[str, str]] = {"check_import": "stands beside broken strategies that need torch"}


@pytest.fixture
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("check_contract", "check_options", "check_import", "check_copy")
    monkeypatch.setattr(fronts, "STRATEGY_CHECKS", tuple(CHECKS[name] for name in names))


@pytest.mark.usefixtures("few_checks")
def test_outcomes_tell_what_passed_what_does_not_apply_and_what_was_expected_to_fail() -> None:
    states = {(outcome.check, outcome.base): outcome.state for outcome in check_strategy(Reduced)}
    assert states == {
        ("check_contract", ""): "passed",
        ("check_options", ""): "passed",
        ("check_import", ""): "expected failure",
        ("check_copy", "bert"): "passed",
        ("check_copy", "gpt2"): "passed",
        ("check_copy", "llama"): "passed",
        ("check_copy", "t5"): "not applicable",
    }


TORN = {"check_copy on bert": "torn", "check_copy on llama": "torn"}


@pytest.mark.usefixtures("few_checks")
def test_a_failure_is_told_with_check_strategy_and_base() -> None:
    class Torn(Reduced):
        """Copies badly."""

        layer = broken.HookedLayer

    with pytest.raises(AssertionError, match=r"check_copy, sound on bert: failed: a copy of the model computes"):
        check_strategy(Torn)
    assert all(outcome.good for outcome in check_strategy(Torn, expected_failures=TORN))


@pytest.mark.usefixtures("few_checks")
def test_what_was_expected_to_fail_and_passes_is_a_failure() -> None:
    with pytest.raises(AssertionError, match="check_copy, sound on bert: unexpected pass: was expected to fail: old"):
        check_strategy(Reduced, expected_failures={"check_copy on bert": "old"})


def test_a_misspelt_expected_failure_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"check_coppy.*did you mean 'check_copy'"):
        check_strategy(Reduced, expected_failures={"check_coppy": "a slip"})


def test_options_of_an_instance_are_those_that_are_checked() -> None:
    made = broken.Sound(broken.SoundOptions(name="sound", r=5))
    assert {one.make().options.r for one in subjects(made)} == {5}


def test_the_decorator_makes_a_test_of_every_check_and_is_strict_about_failures() -> None:
    mark = parametrize_with_checks([Reduced], expected_failures={"check_copy on t5": "a reason"})
    cases = {case.id: case for case in mark.args[1]}
    assert {case.partition("-")[0] for case in cases} == set(CHECKS)
    (xfail,) = cases["check_copy-sound on t5"].marks
    assert (xfail.name, xfail.kwargs) == ("xfail", {"reason": "a reason", "strict": True})
    assert not cases["check_copy-sound on bert"].marks
    cases["check_contract-sound"].values[0]()
    with pytest.raises(pytest.skip.Exception, match="encoder-decoder"):
        cases["check_loss_falls-sound on t5"].values[0]()
