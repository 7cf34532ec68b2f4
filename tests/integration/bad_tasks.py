"""Recipes of every task, with one thing wrong or nothing, and what is to be said of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from in_process import CommandLine, Outcome

Rows: TypeAlias = list[dict[str, Any]]

LINES = (
    "the sea is deep and rich",
    "his bones are coral",
    "those pearls were his eyes",
    "nothing doth fade",
    "sea-nymphs ring his knell",
    "full fathom five thy father lies",
)
QUESTION = {"role": "user", "content": "Where does the river begin?"}
ANSWER = {"role": "assistant", "content": "It begins in the hills."}
TEXT: Rows = [{"text": line} for line in LINES]
LABELLED: Rows = [{"text": line, "label": ("good", "bad")[number % 2]} for number, line in enumerate(LINES)]
NUMBERED: Rows = [{"text": line, "label": number / 2} for number, line in enumerate(LINES)]
LISTED: Rows = [{"text": line, "label": ["sea", "sky"][: number % 3]} for number, line in enumerate(LINES)]
TAGGED: Rows = [{"tokens": line.split(), "tags": ["B-x", *["O"] * line.count(" ")]} for line in LINES]
CHAT: Rows = [{"messages": [{**QUESTION, "content": line}, ANSWER]} for line in LINES]
ALPACA: Rows = [{"instruction": line, "input": "", "output": "rich"} for line in LINES]
SHAREGPT: Rows = [
    {"conversations": [{"from": "human", "value": line}, {"from": "gpt", "value": "rich"}]} for line in LINES
]
PAIRS: Rows = [{"source": line, "target": line[::-1]} for line in LINES]
TRANSLATIONS: Rows = [{"translation": {"en": line, "es": line[::-1]}} for line in LINES]
GOOD = {
    "text-classification": LABELLED,
    "token-classification": TAGGED,
    "causal-lm": TEXT,
    "sft": CHAT,
    "seq2seq": PAIRS,
    "masked-lm": TEXT,
    "span-corruption": TEXT,
}
BASES = {
    "text-classification": "bert",
    "token-classification": "bert",
    "causal-lm": "gpt2",
    "sft": "chat",
    "seq2seq": "t5",
    "masked-lm": "bert",
    "span-corruption": "t5",
}


def changed(rows: Rows, number: int, **values: object) -> Rows:
    """Returns rows, row `number` (from 1) changed."""
    return [{**row, **values} if index == number else row for index, row in enumerate(rows, 1)]


def said(*messages: object) -> Rows:
    """Returns conversations of which the second is this one."""
    return changed(CHAT, 2, messages=list(messages))


@dataclass(frozen=True)
class Case:
    """A recipe or its data with one thing wrong, and what the first problem has to say of it.

    Attributes:
        task: Name, or the whole section.
        found, where, allowed, fix: Parts of what is said.
        code: Exit code; 2: recipe or model, 3: data.
        train: Rows; default: good ones.
        evaluation: Rows; default: the first training rows.
        recipe: Other sections; those of `data` are added to the files.
        files: Makes what else there is, by name.
    """

    task: str | Mapping[str, Any]
    found: str
    where: str = ""
    allowed: str = ""
    fix: str = ""
    code: int = 3
    train: Rows | None = None
    evaluation: Rows | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Callable[[Path], object]] = field(default_factory=dict)


def write_case(case: Case, folder: Path) -> None:
    """Writes the recipe of a case and its data into the working folder."""
    task = {"name": case.task} if isinstance(case.task, str) else dict(case.task)
    train = GOOD.get(task["name"], TEXT) if case.train is None else case.train
    evaluation = train[:2] if case.evaluation is None else case.evaluation
    for name, rows in (("train", train), ("evaluation", evaluation)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, make in case.files.items():
        make(folder / name)
    data = {"train": "train.jsonl", "evaluation": "evaluation.jsonl", **case.recipe.get("data", {})}
    recipe = {"model": BASES.get(task["name"], "bert"), "strategy": "lora", "output": "out", **case.recipe}
    training = {"max_steps": 1, "effective_batch": 4, "compute": "fp32", **case.recipe.get("training", {})}
    recipe |= {"task": task, "data": data, "training": training}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def first_problem(outcome: Outcome) -> dict[str, str]:
    """Returns the fields of the first problem; every line of standard error has to belong to a problem."""
    block: dict[str, str] = {}
    name, first = "", True
    for line in outcome.stderr.splitlines():
        if line.startswith(("error: ", "also:  ")):
            first, name = line.startswith("error: "), "found"
            text = line[7:]
        else:
            label, _, text = line.strip().partition(":")
            is_field = line.startswith("  ") and label in ("where", "allowed", "fix")
            assert is_field or line.startswith(" " * 11), f"a line of something else: {line!r}"
            name, text = (label, text.strip()) if is_field else (name, line.strip())
        if first:
            block[name] = f"{block[name]}\n{text}" if name in block else text
    return block


def check_case(case: Case, cli: CommandLine, *commands: str) -> None:
    """Asserts that every command says the same, with the right exit code, and leaves nothing behind."""
    before = sorted(Path().rglob("*"))
    outcomes = [cli(command, "recipe.yaml") for command in commands]
    assert sorted(Path().rglob("*")) == before
    assert len({(outcome.code, outcome.stderr) for outcome in outcomes}) == 1, outcomes
    assert outcomes[0].code == case.code, outcomes[0]
    block = first_problem(outcomes[0])
    assert case.found in block["found"]
    for name in ("where", "allowed", "fix"):
        assert getattr(case, name) in block.get(name, ""), outcomes[0].stderr
