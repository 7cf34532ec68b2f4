"""A run of conversations keeps its chat template: for predictions, for the next run, for other libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chats import CHATML, CHATML_TOKENS, DIALOGUE, tokenizer_with
from in_process import CommandLine

import adaptkit
from adaptkit.artifact.merging import plain_model
from adaptkit.artifact.run import Run
from adaptkit.data.chat_templates import TEMPLATES
from adaptkit.errors import CheckpointError
from adaptkit.recipe import parse_recipe
from adaptkit.registry import load_registry

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SCRATCH = {"name": "llama", "init": "random", "config": {**SHAPE, "max_position_embeddings": 512}}


def write_base(folder: Path, template: str | None) -> Path:
    """Writes a Llama with random weights, and a tokenizer with the tokens of ChatML."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer_with(template, CHATML_TOKENS, eos="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SHAPE)).save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": DIALOGUE}) + "\n" for _ in range(4)), encoding="utf-8")
    return file


def run(output: Path, model: Any, rows: Path, strategy: str = "lora", *, resume: bool = False, **task: Any) -> Run:
    values = {
        "model": model if isinstance(model, dict) else str(model),
        "task": {"name": "sft", "max_new_tokens": 4, **task},
        "data": {"train": str(rows)},
        "strategy": strategy,
        "training": {"max_steps": 1, "effective_batch": 4, "compute": "fp32"},
        "output": str(output),
    }
    return adaptkit.run(parse_recipe(values, resolver=load_registry()), resume=resume)


def template_in(folder: Path) -> str | None:
    """Returns the chat template that other libraries find in a folder."""
    from transformers import AutoTokenizer

    template: str | None = AutoTokenizer.from_pretrained(folder).chat_template
    return template


@pytest.mark.parametrize("choice", ["chatml", "plain", "auto", "mine.jinja"])
def test_a_template_that_the_base_does_not_have_is_saved_and_found_by_the_next_run(
    choice: str, tmp_path: Path, rows: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = write_base(tmp_path / "base", None)
    expected = {**TEMPLATES, "auto": TEMPLATES["plain"], "mine.jinja": "{# mine #}" + CHATML}[choice]
    Path("mine.jinja").write_text(expected, encoding="utf-8")
    first = run(tmp_path / "first", base, rows, chat_template=choice)
    assert template_in(first.directory / "adapter" / "tokenizer") == expected
    Path("mine.jinja").unlink()
    predicted = cli("predict", first.directory, "--text", "Where?")
    assert predicted.code == 0, predicted.stderr
    assert template_in(plain_model(first.directory)) == expected
    second = run(tmp_path / "second", first.directory, rows)
    assert second.task.template == expected
    assert not (second.directory / "adapter" / "tokenizer").exists()


def test_a_run_whose_template_has_changed_is_not_resumed(tmp_path: Path, rows: Path) -> None:
    base, template = write_base(tmp_path / "base", None), tmp_path / "mine.jinja"
    template.write_text(CHATML, encoding="utf-8")
    directory = run(tmp_path / "run", base, rows, chat_template=str(template)).directory
    (directory / "results.json").unlink()  # as if it had been stopped behind its last checkpoint
    template.write_text("{# changed #}" + CHATML, encoding="utf-8")
    with pytest.raises(CheckpointError, match="labels or chat template"):
        run(tmp_path / "run", base, rows, resume=True, chat_template=str(template))


def test_the_base_s_own_template_is_not_saved_again(tmp_path: Path, rows: Path) -> None:
    base = write_base(tmp_path / "base", CHATML)
    finished = run(tmp_path / "run", base, rows)
    assert not (finished.directory / "adapter" / "tokenizer").exists()
    assert template_in(plain_model(finished.directory)) == CHATML


def test_a_run_keeps_its_template_when_the_base_gets_another_one(tmp_path: Path, rows: Path) -> None:
    base = write_base(tmp_path / "base", CHATML)
    directory = run(tmp_path / "run", base, rows).directory
    (base / "chat_template.jinja").write_text(TEMPLATES["plain"], encoding="utf-8")
    finished = adaptkit.load(directory)
    assert finished.task.template == CHATML
    assert finished.predict(["Where?"])
    assert template_in(plain_model(directory)) == CHATML


def test_a_tokenizer_that_the_run_trained_is_saved_with_the_template_and_read_again(tmp_path: Path, rows: Path) -> None:
    model = {**SCRATCH, "tokenizer": {"vocab_size": 300}}
    directory = run(tmp_path / "run", model, rows, strategy="full").directory
    assert template_in(directory / "adapter" / "tokenizer") == TEMPLATES["plain"]
    assert adaptkit.load(directory).predict(["Where?"])
    assert template_in(plain_model(directory)) == TEMPLATES["plain"]
