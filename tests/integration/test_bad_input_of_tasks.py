"""Rows and mixtures that are wrong for their task: one error that names the place and the fix, found without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bad_tasks import (
    ALPACA,
    ANSWER,
    CHAT,
    GOOD,
    LABELLED,
    LINES,
    LISTED,
    PAIRS,
    QUESTION,
    SHAREGPT,
    TAGGED,
    TEXT,
    TRANSLATIONS,
    Case,
    Rows,
    changed,
    check_case,
    said,
    write_case,
)
from in_process import CommandLine

SHAREGPT_IN_MESSAGES: Rows = [{"messages": row["conversations"]} for row in SHAREGPT]
PLAIN_TAGS: Rows = [{"tokens": row["tokens"], "tags": ["NN"] * len(row["tokens"])} for row in TAGGED]
MIXED = {"train": ["train.jsonl", {"source": "trian.jsonl", "weight": 2}]}


def weighted(weight: object) -> dict[str, Any]:
    return {"data": {"train": [{"source": "train.jsonl", "weight": weight}]}}


KNOWN_AT_ONCE = {
    # the format
    "alpaca rows as messages": Case(
        "sft",
        "there is no column 'messages'",
        "train.jsonl:1\nevaluation.jsonl:1",
        fix="these look like alpaca rows: data: {format: alpaca}",
        train=ALPACA,
        recipe={"data": {"format": "messages"}},
    ),
    "an instruction as messages": Case(
        "sft",
        "the messages are a string, not a list",
        "train.jsonl:6\nevaluation.jsonl:1",
        fix="another format",
        train=ALPACA,
        recipe={"data": {"columns": {"messages": "instruction"}}},
    ),
    "messages that are JSON in a string": Case(
        "sft",
        "the messages are a string, not a list",
        "train.jsonl:1",
        fix="write the list itself",
        train=[{"messages": json.dumps(row["messages"])} for row in CHAT],
    ),
    "sharegpt rows as alpaca": Case(
        "sft",
        "there is no column 'instruction'",
        "train.jsonl:1",
        fix="data: {format: sharegpt}",
        train=SHAREGPT,
        recipe={"data": {"format": "alpaca"}},
    ),
    "sharegpt turns as messages": Case(
        "sft",
        "'from' and 'value'",
        "train.jsonl:1",
        fix="data: {format: sharegpt, columns: {conversations: messages}}",
        train=SHAREGPT_IN_MESSAGES,
    ),
    "labelled rows as a chat": Case(
        "sft",
        "the columns 'text', 'label' fit no format",
        "train.jsonl:1",
        "alpaca: instruction, output",
        "task: text-classification",
        train=LABELLED,
    ),
    "messages as running text": Case(
        "causal-lm", "the columns 'messages' fit no format", "train.jsonl:1", "text: text", "task: sft", train=CHAT
    ),
    "words as a classified text": Case(
        "text-classification",
        "there is no column 'text'",
        "train.jsonl:1",
        "'tokens', 'tags'",
        "task: token-classification",
        train=TAGGED,
    ),
    "translations in one column": Case(
        "seq2seq",
        "fit no format",
        "train.jsonl:1",
        fix="data: {columns: {source: translation.en, target: translation.es}}",
        train=TRANSLATIONS,
    ),
    "a language that is not there": Case(
        "seq2seq",
        "there is no column 'translation.fr'",
        "train.jsonl:1",
        "'translation.es'",
        "did you mean 'translation.es'?",
        train=TRANSLATIONS,
        recipe={"data": {"columns": {"source": "translation.en", "target": "translation.fr"}}},
    ),
    "two formats in one file": Case(
        "sft", "6 of 12 rows have no column 'messages'", "train.jsonl:7", "'instruction'", train=CHAT + ALPACA
    ),
    "an unknown format": Case(
        "sft",
        "reads no format 'alpacca'",
        "data.format",
        "sharegpt: conversations",
        "did you mean 'alpaca'?",
        code=2,
        recipe={"data": {"format": "alpacca"}},
    ),
    "an unknown role": Case(
        "sft",
        "no role 'mesages'",
        "data.columns",
        "'messages'",
        "did you mean 'messages'?",
        code=2,
        recipe={"data": {"columns": {"mesages": "messages"}}},
    ),
    # conversations
    "a message without a role": Case(
        "sft",
        "the message has no role",
        "train.jsonl:2, message 1",
        "'user'",
        "who speaks",
        train=said({"content": "hello"}, ANSWER),
    ),
    "no turn of the assistant": Case(
        "sft", "nothing to learn", "train.jsonl:2", fix="add the answer", train=said(QUESTION)
    ),
    "another role": Case(
        "sft",
        "unknown role 'human'",
        "train.jsonl:2, message 1",
        "'assistant'",
        "did you mean 'user'?",
        train=said({**QUESTION, "role": "human"}, ANSWER),
    ),
    "an empty answer": Case(
        "sft",
        "the content is an empty string",
        "train.jsonl:2, message 2",
        train=said(QUESTION, {**ANSWER, "content": ""}),
    ),
    "a content in parts": Case(
        "sft",
        "the content is a list, not a string",
        "train.jsonl:2, message 1",
        fix="join its parts",
        train=said({**QUESTION, "content": [{"type": "text", "text": "hello"}]}, ANSWER),
    ),
    "messages that are strings": Case(
        "sft", "the message is a string, not an object", "train.jsonl:2, message 1", '"role"', train=said("hello", "ho")
    ),
    "an empty output of alpaca": Case(
        "sft", "the output is an empty string", "train.jsonl:3", train=changed(ALPACA, 3, output="")
    ),
    "an unknown speaker of sharegpt": Case(
        "sft",
        "turn 1 is from 'narrator'",
        "train.jsonl:3",
        "human",
        train=changed(SHAREGPT, 3, conversations=[{"from": "narrator", "value": "once"}]),
    ),
    # tags
    "fewer tags than tokens": Case(
        "token-classification",
        "the numbers of tokens (5) and tags (1) differ",
        "train.jsonl:3, column 'tags'",
        fix="one tag",
        train=changed(TAGGED, 3, tags=["O"]),
    ),
    "a tag that training never saw": Case(
        "token-classification",
        "the tag 'B-xx' of the evaluation rows is on no training row",
        "evaluation.jsonl:1",
        "'B-x', 'O'",
        "did you mean 'B-x'?",
        evaluation=[{"tokens": ["sea"], "tags": ["B-xx"]}],
    ),
    "tokens that are numbers": Case(
        "token-classification",
        "token 1 is the number 1, not a string",
        "train.jsonl:3, column 'tokens'",
        train=changed(TAGGED, 3, tokens=[1, 2, 3, 4, 5]),
    ),
    "words in one string": Case(
        "token-classification",
        "the tokens are a string, not a list",
        "train.jsonl:3, column 'tokens'",
        fix='["A", "fine", "film"]',
        train=changed(TAGGED, 3, tokens="those pearls"),
    ),
    "plain tags under bio": Case(
        {"name": "token-classification", "scheme": "bio"},
        "the tag 'NN' is not of the scheme bio",
        "train.jsonl:1",
        "'B-x'",
        "task.scheme to plain",
        train=[*PLAIN_TAGS, *TAGGED],
    ),
    # targets and labels
    "no target": Case(
        "seq2seq",
        "fit no format",
        "train.jsonl:1",
        "source, target",
        "add what is missing",
        train=TEXT[:0] + [{"source": line} for line in LINES],
    ),
    "a target that is empty": Case(
        "seq2seq", "the target is an empty string", "train.jsonl:2, column 'target'", train=changed(PAIRS, 2, target="")
    ),
    "a target that is null": Case(
        "seq2seq", "the target is null", "train.jsonl:2, column 'target'", train=changed(PAIRS, 2, target=None)
    ),
    "names as numbers": Case(
        {"name": "text-classification", "kind": "regression"},
        "the label is 'good', not a number",
        "train.jsonl:1, column 'label'",
        fix="task.kind: single",
    ),
    "one name where there are lists": Case(
        {"name": "text-classification", "kind": "multi"},
        "the label is 'good', not a list",
        "train.jsonl:1, column 'label'",
        fix='["a", "b"]',
    ),
    "lists where there is one name": Case(
        {"name": "text-classification", "kind": "single"},
        "the label is a list",
        "train.jsonl:1, column 'label'",
        fix="task.kind: multi",
        train=LISTED,
    ),
    "weights of classes for lists": Case(
        {"name": "text-classification", "class_weights": "balanced"},
        "class_weights is of no use",
        "task.class_weights",
        fix="leave it out",
        code=2,
        train=LISTED,
    ),
    # mixtures and shares
    "a file of a mixture that is not there": Case(
        "text-classification",
        "no file or folder 'trian.jsonl'",
        fix="did you mean 'train.jsonl'?",
        recipe={"data": MIXED},
    ),
    "a weight of nothing": Case(
        "causal-lm", "weight must be greater than 0, found 0", "recipe.yaml:", code=2, recipe=weighted(0)
    ),
    "a weight below nothing": Case(
        "causal-lm", "greater than 0, found -1", "recipe.yaml:", code=2, recipe=weighted(-1)
    ),
    "weights that leave no row": Case(
        "causal-lm", "leave no row to train on", "train.jsonl", fix="raise a weight", recipe=weighted(1e-6)
    ),
    "a weight on evaluation rows": Case(
        "causal-lm",
        "only training rows have a weight",
        "recipe.yaml:",
        code=2,
        recipe={"data": {"evaluation": {"source": "evaluation.jsonl", "weight": 2}}},
    ),
    "a share above one": Case(
        "causal-lm",
        "data.evaluation must be",
        "recipe.yaml:",
        "less than 1",
        code=2,
        recipe={"data": {"evaluation": 1.5}},
    ),
    "a group of no column": Case(
        "causal-lm",
        "there is no column 'document'",
        "train.jsonl:1",
        "'text'",
        "data.group",
        recipe={"data": {"evaluation": 0.5, "group": "document"}},
    ),
}


@pytest.mark.usefixtures("no_heavy_imports")
@pytest.mark.parametrize("case", KNOWN_AT_ONCE.values(), ids=KNOWN_AT_ONCE)
def test_what_the_rows_show_is_found_by_validation_without_torch(case: Case, configs: Path, cli: CommandLine) -> None:
    write_case(case, configs)
    check_case(case, cli, "validate", "preview", "run")


@pytest.mark.usefixtures("no_heavy_imports")
@pytest.mark.parametrize("task", GOOD)
def test_the_same_without_the_mistake_is_good(task: str, configs: Path, cli: CommandLine) -> None:
    write_case(Case(task, ""), configs)
    outcome = cli("validate", "recipe.yaml")
    assert (outcome.code, outcome.stderr) == (0, "")
