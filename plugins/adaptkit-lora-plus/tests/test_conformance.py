"""LoRA+ keeps adaptkit's contract, in plain and with every option changed."""

from __future__ import annotations

from collections.abc import Callable

from adaptkit_lora_plus import LoraPlus, LoraPlusOptions

from adaptkit.testing import parametrize_with_checks

CHANGED = LoraPlusOptions(name="lora-plus", lr_ratio=4, r=4, lora_alpha=4, lora_dropout=0.1, use_rslora=True)


@parametrize_with_checks([LoraPlus])
def test_keeps_the_contract(check: Callable[[], None]) -> None:
    check()


@parametrize_with_checks([LoraPlus(CHANGED)])
def test_keeps_the_contract_with_other_options(check: Callable[[], None]) -> None:
    check()
