"""What a person is shown of the rows of every task before anything trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_tasks import LISTED, NUMBERED, Case, Rows, write_case
from in_process import CommandLine

SHOWN = {
    "text-classification": "[CLS] the sea is deep and rich [SEP] → ⟦good⟧",
    "token-classification": "/B-x⟧",
    "causal-lm": "fathom five thy father lies<|endoftext|>⟧",
    "sft": "<|im_start|>assistant\n  | ⟦It begins in the hills.<|im_end|>⟧",
    "seq2seq": "the sea is deep and rich</s> → ⟦hcir dna peed si aes eht</s>⟧",
    "masked-lm": "[MASK] → ",
    "span-corruption": " → ⟦<extra_id_0>",
}


@pytest.mark.parametrize("task", SHOWN)
def test_a_preview_shows_what_is_read_and_what_is_to_be_learned(task: str, base_folder: Path, cli: CommandLine) -> None:
    write_case(Case(task, ""), base_folder)
    outcome = cli("preview", "recipe.yaml", "--examples", 1)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "rows: 6 training, 2 evaluation; format" in outcome.stdout
    assert "the loss falls on ⟦ ⟧" in outcome.stdout
    assert SHOWN[task] in outcome.stdout


@pytest.mark.parametrize(("kind", "rows", "label"), [("multi", LISTED, "sea, sky"), ("regression", NUMBERED, "1.5")])
def test_a_preview_shows_labels_of_every_kind(
    kind: str, rows: Rows, label: str, base_folder: Path, cli: CommandLine
) -> None:
    write_case(Case({"name": "text-classification", "kind": kind}, "", train=rows), base_folder)
    shown = cli("preview", "recipe.yaml", "--examples", 6).stdout
    assert f"[SEP] → ⟦{label}⟧" in shown
    assert kind == "regression" or "[SEP] → ⟦no label⟧" in shown
