"""Instructions, prompts and conversations, as messages: ``[{"role": "user", "content": "…"}, …]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

from adaptkit.data.problems import kind_of, text_problem
from adaptkit.errors import DataError, did_you_mean
from adaptkit.format import Format

Message: TypeAlias = Mapping[str, Any]

TURN = '{"from": "human", "value": "…"}'
TURN_FIX = "write it so, or remove the row"
MESSAGES_FIX = "these are messages: data: {format: messages, columns: {messages: conversations}}"
# Who speaks, as published conversations write it.
SPEAKERS: Mapping[str, str] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


class PromptCompletion(Format):
    """A prompt and its completion, each a text or a list of messages."""

    name = "prompt-completion"
    gives = ("messages",)
    roles = ("prompt",)
    label_roles = ("completion",)
    optional_roles = ("system",)
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {"completion": ("response",)}

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns ``messages``: perhaps of the system, of the user, then of the assistant."""
        messages = _behind_system(values, _messages("prompt", values["prompt"], "user"))
        if "completion" in values:
            messages += _messages("completion", values["completion"], "assistant")
        return {"messages": messages}


class Alpaca(Format):
    """An instruction, perhaps with an input, and the output.

    The input follows the instruction after an empty line; the model's own chat template takes the place of the
    words that Stanford's Alpaca put around the two.
    """

    name = "alpaca"
    gives = ("messages",)
    roles = ("instruction",)
    label_roles = ("output",)
    optional_roles = ("input", "system")
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {"input": ("context",), "output": ("response",)}

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns ``messages``: perhaps of the system, of the user, and of the assistant."""
        question = _text("instruction", values["instruction"])
        if given := _optional_text("input", values.get("input")):
            question = f"{question}\n\n{given}"
        messages = _behind_system(values, [_message("user", question)])
        if "output" in values:
            messages.append(_message("assistant", _text("output", values["output"])))
        return {"messages": messages}


class ShareGPT(Format):
    """A conversation of turns, each with who speaks (`from`) and what (`value`)."""

    name = "sharegpt"
    gives = ("messages",)
    roles = ("conversations",)
    optional_roles = ("system",)
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {"conversations": ("conversation",)}

    def convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns ``messages``, one a turn."""
        turns = values["conversations"]
        if not isinstance(turns, list):
            raise DataError(f"conversations is {kind_of(turns)}, not a list", allowed=f"a list of {TURN}", fix=TURN_FIX)
        return {"messages": _behind_system(values, [_turn(number, turn) for number, turn in enumerate(turns, 1)])}


def _turn(number: int, turn: Any) -> Message:
    if not isinstance(turn, Mapping) or not {"from", "value"} <= set(turn):
        is_message = isinstance(turn, Mapping) and {"role", "content"} <= set(turn)
        raise DataError(
            f"turn {number} is not an object with from and value",
            allowed=TURN,
            fix=MESSAGES_FIX if is_message else TURN_FIX,
        )
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker.lower() not in SPEAKERS:
        raise DataError(
            f"turn {number} is from {speaker!r}",
            allowed=", ".join(SPEAKERS),
            fix=did_you_mean(str(speaker), SPEAKERS) or "write who speaks in one of these words, or remove the row",
        )
    return _message(SPEAKERS[speaker.lower()], _text(f"value of turn {number}", turn["value"]))


def _messages(role: str, value: Any, speaker: str) -> list[Message]:
    """Returns a text as the one message of a speaker, and a list of messages as it is: the task checks those."""
    return list(value) if isinstance(value, list) and value else [_message(speaker, _text(role, value))]


def _behind_system(values: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """Returns messages behind that of the system which has a column of its own, unless they begin with it as well.

    Raises:
        DataError: They begin with another one.
    """
    text, first = _optional_text("system", values.get("system")), messages[0] if messages else None
    there = first.get("content") if isinstance(first, Mapping) and first.get("role") == "system" else None
    if text is None or text == there:
        return messages
    if there is not None:
        raise DataError(
            "the row has two system messages: in a column of its own, and as its first message",
            allowed="one of the two, or the same text",
            fix="leave one out",
        )
    return [_message("system", text), *messages]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _optional_text(name: str, value: Any) -> str | None:
    blank = value is None or (isinstance(value, str) and not value.strip())
    return None if blank else _text(name, value)


def _text(name: str, value: Any) -> str:
    """Returns a value that is a text.

    Raises:
        DataError: It is none, or an empty one.
    """
    if problem := text_problem(value):
        found, fix = problem
        raise DataError(f"the {name} {found}", fix=fix)
    return str(value)
