"""What the tests of the command line share."""

from __future__ import annotations

import builtins
import json
import os
from pathlib import Path
from typing import Any

import pytest
from in_process import CommandLine

from tests import chats, texts

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "sklearn", "accelerate")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("ADAPTKIT_DISABLE_PLUGINS", raising=False)
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def no_heavy_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every ``import torch`` (and the like) fail, whether or not another test has imported it.

    Where they are installed can still be asked: validation reads the source of transformers and PEFT.
    """
    real = builtins.__import__

    def light(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] in HEAVY:
            raise ImportError(f"{name} is heavy")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", light)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bases of every family: config and tokenizer, no weights."""
    folder = tmp_path_factory.mktemp("bases")
    for manner in ("bert", "gpt2", "llama", "t5"):
        texts.config(manner).save_pretrained(folder / manner)
        texts.tokenizer(manner).save_pretrained(folder / manner)
    tokenizer = chats.tokenizer_of("chatml")
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    texts.config("llama", vocab_size=len(tokenizer), **special).save_pretrained(folder / "chat")
    tokenizer.save_pretrained(folder / "chat")
    return folder


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with bases of every family: config alone."""
    for name, model_type in (("bert", "bert"), ("gpt2", "gpt2"), ("llama", "llama"), ("chat", "llama"), ("t5", "t5")):
        (tmp_path / name).mkdir()
        config = {"model_type": model_type, "is_encoder_decoder": model_type == "t5"}
        (tmp_path / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def base_folder(tmp_path: Path, bases: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the bases, which have no weights."""
    for base in bases.iterdir():
        os.symlink(base, tmp_path / base.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
