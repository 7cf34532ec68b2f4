"""``adaptkit check``: a table of what holds on which base, and an exit code for scripts."""

from __future__ import annotations

import pytest
from in_process import CommandLine

from adaptkit.errors import PluginError, RecipeError
from adaptkit.testing import STRATEGY_CHECKS, fronts
from adaptkit.testing.check import Check

FEW = ("check_contract", "check_options", "check_base_is_frozen", "check_optimizer")


def broken(subject: object) -> None:
    """Nothing holds."""
    raise AssertionError(f"nothing holds for {subject!r:.9}")


@pytest.fixture
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tuple(check for check in STRATEGY_CHECKS if check.name in FEW)
    monkeypatch.setattr(fronts, "STRATEGY_CHECKS", chosen)


@pytest.fixture
def one_broken(monkeypatch: pytest.MonkeyPatch, few_checks: None) -> None:
    monkeypatch.setattr(fronts, "STRATEGY_CHECKS", (*fronts.STRATEGY_CHECKS, Check("check_nothing", broken)))


@pytest.mark.usefixtures("few_checks")
def test_what_holds_on_which_base_is_a_table(cli: CommandLine) -> None:
    done = cli("check", "last-layers")
    assert (done.code, done.stderr) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    assert rows["LAST-LAYERS"] == ["BERT", "GPT2", "LLAMA", "T5"]
    assert rows["check_contract"] == ["ok"]
    assert rows["check_base_is_frozen"] == ["-", "-", "-", "-"]
    assert rows["check_optimizer"] == ["ok", "ok", "ok", "ok"]
    assert "last-layers: 6 passed, 4 not applicable, in" in done.stdout


@pytest.mark.usefixtures("one_broken")
def test_a_failure_is_told_once_with_its_bases_and_ends_in_the_code_of_plugins(cli: CommandLine) -> None:
    done = cli("check", "lora")
    assert done.code == PluginError.exit_code
    assert done.stdout.count("nothing holds") == 1
    assert "in check_nothing on bert, gpt2, llama, t5: Nothing holds." in done.stdout
    assert "lora of adaptkit-train" in done.stderr
    assert "docs/contract.md" in done.stderr


@pytest.mark.usefixtures("few_checks")
def test_options_of_the_strategy_can_be_given(cli: CommandLine) -> None:
    assert cli("check", "lora", "r=2").code == 0
    unknown = cli("check", "lora", "rank=2")
    assert unknown.code == RecipeError.exit_code
    assert "unknown key 'rank'" in unknown.stderr
    missing = cli("check", "peft:trainable-tokens")
    assert missing.code == RecipeError.exit_code
    assert "strategy.token_indices is missing" in missing.stderr


def test_an_unknown_name_is_told_with_what_was_meant(cli: CommandLine) -> None:
    done = cli("check", "lroa")
    assert done.code == RecipeError.exit_code
    assert "did you mean 'lora'?" in done.stderr
