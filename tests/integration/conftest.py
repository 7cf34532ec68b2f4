"""What the tests of the command line share."""

from __future__ import annotations

import sys

import pytest
from in_process import CommandLine

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "sklearn", "accelerate")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("ADAPTKIT_DISABLE_PLUGINS", raising=False)
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def no_heavy_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every ``import torch`` (and the like) fail, whether or not another test has imported it."""
    for name in HEAVY:
        monkeypatch.setitem(sys.modules, name, None)
