"""Conversations: rows of messages, read and checked message by message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptkit.data.problems import enumerate_names, is_missing, kind_of, text_problem
from adaptkit.errors import Problem, did_you_mean
from adaptkit.task import Row

ROLES = ("system", "user", "assistant", "tool")
# What data sets and other libraries call these roles; proposed in messages, never applied silently.
SYNONYMS: Mapping[str, str] = {
    "human": "user",
    "prompter": "user",
    "customer": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "agent": "assistant",
    "developer": "system",
    "instructions": "system",
    "function": "tool",
}
SHAPE = 'a list: [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'


@dataclass(frozen=True)
class Conversation:
    """The messages of one row.

    Attributes:
        messages: Each with ``role`` and ``content``.
        where: Of the row.
        unread: Keys that a message has besides.
    """

    messages: tuple[Mapping[str, str], ...]
    where: str
    unread: frozenset[str] = frozenset()

    @property
    def has_answer(self) -> bool:
        """Whether there is something to learn: an assistant's turn."""
        return any(message["role"] == "assistant" for message in self.messages)

    @property
    def question(self) -> tuple[Mapping[str, str], ...]:
        """What the assistant is to answer: everything before the answer that the conversation may end with."""
        messages = self.messages
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        return messages


def read_conversations(rows: Sequence[Row]) -> tuple[list[Conversation], list[Problem]]:
    """Reads rows, and finds everything that is wrong with any message.

    Returns:
        The conversations that have no problem, and the problems.
    """
    conversations, problems = [], []
    for row in rows:
        messages: Any = row.values.get("messages")
        found = _row_problem(messages, row.where)
        wrong = [found] if found else _message_problems(messages, row.where)
        wrong += _system_problems(row, messages)
        problems += wrong
        if not wrong:
            conversations.append(_conversation([*_system(row, messages), *messages], row.where))
    return conversations, problems


def without_answer(conversations: Sequence[Conversation]) -> list[Problem]:
    """Returns a problem for each conversation from which nothing can be learned."""
    fix = "add the answer to learn, or remove the row"
    return [
        Problem("no message is the assistant's, so there is nothing to learn", conversation.where, fix=fix)
        for conversation in conversations
        if not conversation.has_answer
    ]


def without_question(conversations: Sequence[Conversation]) -> list[Problem]:
    """Returns a problem for each conversation that the assistant cannot be asked to go on with."""
    fix = "add the message to answer, or remove the row"
    return [
        Problem("no message asks for an answer", conversation.where, "a user's message before the answer", fix)
        for conversation in conversations
        if not conversation.question or conversation.question[-1]["role"] == "system"
    ]


def _conversation(messages: Sequence[Mapping[str, Any]], where: str) -> Conversation:
    keys = {key for message in messages for key, value in message.items() if value is not None}
    pairs = tuple({"role": message["role"], "content": message["content"]} for message in messages)
    return Conversation(pairs, where, frozenset(keys - {"role", "content"}))


def _system(row: Row, messages: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Returns the system message of a column of its own, unless there is none or it is the first message as well."""
    content = row.values.get("system")
    blank = is_missing(content) or (isinstance(content, str) and not content.strip())
    message = {"role": "system", "content": content}
    return [] if blank or _first_system(messages) == content else [message]


def _system_problems(row: Row, messages: Any) -> list[Problem]:
    if not (system := _system(row, messages if isinstance(messages, list | tuple) else ())):
        return []
    if problem := text_problem(system[0]["content"]):
        return [Problem(f"the system message {problem[0]}", row.place("system"), fix=problem[1])]
    if _first_system(messages) is not None:
        found = "the row has two system messages: in a column of its own, and as its first message"
        return [Problem(found, row.place("system"), "one of the two, or the same text", "leave one out")]
    return []


def _first_system(messages: Any) -> Any:
    """Returns the content of the system message that messages begin with, or None."""
    first = messages[0] if isinstance(messages, list | tuple) and messages else None
    return first.get("content") if isinstance(first, Mapping) and first.get("role") == "system" else None


def _row_problem(messages: Any, where: str) -> Problem | None:
    """Returns what is wrong with a row as a whole, or None."""
    if messages is None:
        return Problem("the row has no messages", where, SHAPE, "give the row messages, or remove it")
    if not isinstance(messages, list | tuple):
        fix = "write the conversation as a list; a prompt and its answer in two columns are another format: data.format"
        if isinstance(messages, str) and messages.lstrip().startswith("["):
            fix = "this string is JSON: write the list itself, without quotes around it"
        return Problem(f"the messages are {kind_of(messages)}, not a list", where, SHAPE, fix)
    if not messages:
        return Problem("the list of messages is empty", where, SHAPE, "give the row messages, or remove it")
    if any(isinstance(message, Mapping) and "role" not in message and "from" in message for message in messages):
        fix = "these are rows of sharegpt: data: {format: sharegpt, columns: {conversations: messages}}"
        return Problem("the messages have 'from' and 'value' in place of 'role' and 'content'", where, SHAPE, fix)
    return None


def _message_problems(messages: Sequence[Any], where: str) -> list[Problem]:
    problems = []
    for number, message in enumerate(messages, 1):
        place = f"{where}, message {number}"
        if not isinstance(message, Mapping):
            problems.append(
                Problem(f"the message is {kind_of(message)}, not an object", place, SHAPE, "say who speaks")
            )
            continue
        role = _role_problem(message, place)
        if role:
            problems.append(role)
        content = text_problem(message.get("content"))
        if content:
            problems.append(_content_problem(message, content, place))
    return problems


def _role_problem(message: Mapping[str, Any], place: str) -> Problem | None:
    role, allowed = message.get("role"), enumerate_names(ROLES)
    if role is None:
        return Problem("the message has no role", place, allowed, "say who speaks")
    if role in ROLES:
        return None
    known = SYNONYMS.get(str(role).lower())
    guess = f"did you mean {known!r}?" if known else did_you_mean(str(role).lower(), ROLES)
    return Problem(f"unknown role {role!r}", place, allowed, guess or "write one of these roles")


def _content_problem(message: Mapping[str, Any], problem: tuple[str, str], place: str) -> Problem:
    """Returns what is wrong with a message's content, in the words of texts in general."""
    found, fix = problem
    if "content" not in message:
        found, fix = "is missing", "add it, or remove the row"
    elif message.get("tool_calls"):
        fix = "write the call as text: messages are read by role and content alone"
    elif isinstance(message["content"], list | tuple):
        fix = "join its parts into one string; images and sounds are not read"
    return Problem(f"the content {found}", place, fix=fix)
