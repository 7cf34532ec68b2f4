"""Dialogues of two people, as the messages of a user and an assistant."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fetching.archives import read_zip_member
from fetching.asset import Asset
from fetching.packages import PythonPackage
from fetching.rows import split, without_repeats, write_splits

FEWEST_TURNS = 4
LONGEST_MESSAGE_CHARACTERS = 5000
"""Whoever writes more without an answer talks to nobody."""

Utterance = Mapping[str, str]
Dialogue = dict[str, list[dict[str, str]]]


def unpack(archives: Sequence[Path], folder: Path) -> Mapping[str, int]:
    """Writes rows of `messages`, cut 80 : 10 : 10."""
    conversations = json.loads(read_zip_member(archives[0], "chitchat_dataset/dataset.json")).values()
    dialogues = [read_dialogue(itertools.chain(*conversation["messages"])) for conversation in conversations]
    distinct = without_repeats(filter(is_dialogue, dialogues), _text)
    splits = split(distinct, _text)
    return write_splits(folder, splits)


def read_dialogue(utterances: Iterable[Utterance]) -> Dialogue:
    """Makes one message of the lines that one person writes in a row.

    Whoever begins is the user; a last message that the assistant does not answer is left out.
    """
    said = [(utterance["sender"], utterance["text"].strip()) for utterance in utterances]
    turns = itertools.groupby((line for line in said if line[1]), key=lambda line: line[0])
    contents = ["\n".join(text for _, text in lines) for _, lines in turns]
    answered = contents[: len(contents) // 2 * 2]
    roles = itertools.cycle(("user", "assistant"))
    return {"messages": [{"role": role, "content": content} for role, content in zip(roles, answered, strict=False)]}


def is_dialogue(row: Dialogue) -> bool:
    """Says whether two people talk: many rows are one who waits for another."""
    lengths = [len(message["content"]) for message in row["messages"]]
    return len(lengths) >= FEWEST_TURNS and max(lengths) <= LONGEST_MESSAGE_CHARACTERS


def _text(dialogue: Dialogue) -> str:
    return "\n".join(message["content"] for message in dialogue["messages"])


ASSET = Asset(
    name="chitchat",
    about="dialogues of people who were paired by the Chit-Chat Challenge (Brigham Young University, 2018); casual, "
    "unedited, both sides are people, and many first messages answer a question of the day that is not shown",
    licence="MIT",
    packages=(
        PythonPackage(
            name="chitchat-dataset",
            version="0.9.0",
            archive="chitchat_dataset-0.9.0-py3-none-any.whl",
            sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
        ),
    ),
    unpack=unpack,
)
