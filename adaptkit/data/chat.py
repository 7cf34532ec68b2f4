"""From conversations to text through a chat template, and which of the text is an assistant's answer.

What an answer is, is found by rendering alone, so no template needs marks for it: it begins where the template asks
for one (``add_generation_prompt``) and ends with the token by which the template ends a turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from typing import Any, Literal, TypeAlias

from adaptkit.errors import ModelError

Message: TypeAlias = Mapping[str, str]
Learn: TypeAlias = Literal["assistant", "last-assistant", "all"]

QUESTION: Message = {"role": "user", "content": "question"}
ANSWER: Message = {"role": "assistant", "content": "answer"}
# Stands for the content of a message in an outline; of characters for private use, which no text should have.
PLACE = "\ue000{}\ue001"
PLACES = re.compile(PLACE.format("([0-9]+)"))
# Conversations of so many messages and more lose by the memory for outlines, but not their exactness.
# In front of templates that write today's date: they write one day, the same whenever a run is resumed or asked. It is
# the day that Llama 3.2's template writes where it knows none.
DAY = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday", "%a": "Fri"}
REPLACED = "".join(f" | replace('{code}', '{text}')" for code, text in DAY.items())
FIXED_DAY = "{%- macro strftime_now(format) -%}{{ format" + REPLACED + " }}{%- endmacro -%}"
OUTLINES = 2048


class TemplateRefusal(ValueError):  # noqa: N818 - what a template says of one conversation, no fault of the program
    """A chat template cannot render a conversation as it is; the text says why."""


@dataclass(frozen=True)
class ChatText:
    """A rendered conversation.

    Attributes:
        text: As the tokenizer gets it.
        learned: Spans of characters, first to one past the last, that the loss falls on.
    """

    text: str
    learned: tuple[tuple[int, int], ...] = ()


class ChatTemplate:
    """Renders conversations for one tokenizer.

    Args:
        tokenizer: A fast ``transformers`` tokenizer; it renders templates in a sandbox.
        source: The template, in Jinja.

    Attributes:
        end_token: What an answer ends with; it is learned, and stops a generation.

    Raises:
        ModelError: The template cannot render a question and an answer, or ends an answer with no token.
    """

    def __init__(self, tokenizer: Any, source: str) -> None:
        self._tokenizer = tokenizer
        self._source = FIXED_DAY + source if "strftime_now" in source else source
        self._outline = lru_cache(OUTLINES)(self._make_outline)
        try:
            asked, prompt = self.render([QUESTION]), self.render([QUESTION], ask=True)
            self._ask = prompt.removeprefix(asked)
            self.end_token = self._end_of_turn(self.render([QUESTION, ANSWER]))
        except TemplateRefusal as refusal:
            fix = "correct the template, or choose another one: task.chat_template"
            raise ModelError(
                f"the chat template cannot be used: {refusal}", where="task.chat_template", fix=fix
            ) from refusal

    @property
    def stop_ids(self) -> list[int]:
        """The ids of the tokens after which an answer is complete."""
        names = dict.fromkeys([self.end_token, self._tokenizer.eos_token])
        return [self._tokenizer.convert_tokens_to_ids(name) for name in names if name is not None]

    def render(self, messages: Sequence[Message], *, ask: bool = False) -> str:
        """Returns the text of a conversation; `ask` ends it with the words that call for an answer.

        Raises:
            TemplateRefusal: The template raised, with the text that it gives.
        """
        from jinja2 import TemplateError, TemplateSyntaxError

        try:
            text: str = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self._source,
                add_generation_prompt=ask,
                tokenize=False,
            )
        except TemplateSyntaxError as error:
            raise TemplateRefusal(f"line {error.lineno}: {error.message}") from error
        except (TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            raise TemplateRefusal(str(error) or type(error).__name__) from error
        return text

    def question(self, messages: Sequence[Message]) -> ChatText:
        """Returns the text that an answer is generated after.

        Raises:
            TemplateRefusal: The template does not take this conversation, or leaves out a message of it.
        """
        text = self.render(messages, ask=True)
        _check_complete([message for message in messages if message["role"] != "assistant"], text)
        return ChatText(text)

    def lessons(self, messages: Sequence[Message], learn: Learn) -> list[ChatText]:
        """Returns the text to learn a conversation from, up to the last answer.

        One text, unless the template writes a turn otherwise once another one follows it (it drops earlier reasoning,
        say): then one text an answer, as it is when the answer is to be given, with the loss on this answer only.

        Args:
            messages: With at least one of the assistant.
            learn: Whether the loss falls on the assistant's answers, the last of them, or all there is.

        Raises:
            TemplateRefusal: The template does not take this conversation, or leaves out a message of it.
        """
        if learn == "all":
            text = self.render(messages)
            _check_complete(messages, text)
            return [ChatText(text, ((0, len(text)),))]
        turns = [number for number, message in enumerate(messages, 1) if message["role"] == "assistant"]
        if learn == "last-assistant":
            return [self._answer(messages[: turns[-1]])]
        filled = self._filled_outline(messages[: turns[-1]], turns)
        return [filled] if filled else _joined([self._answer(messages[:turn]) for turn in turns])

    def _filled_outline(self, messages: Sequence[Message], turns: Sequence[int]) -> ChatText | None:
        """Returns the text of a conversation that ends with an answer, rendered once and not once a turn.

        Where a turn begins and ends is known of other conversations in which the same ones spoke, as long as the
        template does nothing with what they say but write it. That it does no more is seen: their outline, with the
        contents of this conversation in it, is what the template makes of it. (It is not seen of a template that does
        more with a content as long as it is the last one, and leaves no trace of that afterwards.)

        Args:
            messages: Of the conversation.
            turns: Numbers of the messages that are answers, from 1.

        Returns:
            None where the template does more, where it writes a turn otherwise once another one follows it, or where
            it refuses; then only rendering turn by turn tells.
        """
        roles = tuple(message["role"] for message in messages)
        try:
            outline, *more = _joined([self._outline(roles[:turn]) for turn in turns])
        except TemplateRefusal:
            return None
        if more:
            return None
        text = self.render(messages)
        text = text[: text.rfind(self.end_token) + len(self.end_token)]
        contents = [message["content"] for message in messages]
        candidates = (_filled(outline, written) for written in (contents, [content.strip() for content in contents]))
        return next((filled for filled in candidates if filled.text == text), None)

    def _make_outline(self, roles: tuple[str, ...]) -> ChatText:
        """Returns a conversation that ends with an answer, with numbers in the places of what is said."""
        return self._answer([{"role": role, "content": PLACE.format(place)} for place, role in enumerate(roles)])

    def _answer(self, messages: Sequence[Message]) -> ChatText:
        """Returns a conversation that ends with an answer, cut after the answer's end token."""
        text = self.render(messages)
        start = self._answer_start(messages, text)
        ending = text.rfind(self.end_token, start)
        if ending < 0:
            raise TemplateRefusal(f"message {len(messages)}: the answer does not end with {self.end_token!r}")
        asked = [message for message in messages if message["role"] != "assistant"]
        _check_complete([*asked, messages[-1]], text)
        end = ending + len(self.end_token)
        return ChatText(text[:end], ((start, end),))

    def _answer_start(self, messages: Sequence[Message], text: str) -> int:
        if len(messages) == 1:  # transformers renders no empty conversation
            place = text.find(self._ask) if self._ask else -1
            if place < 0:
                raise TemplateRefusal("message 1: under this template a conversation cannot begin with an answer")
            return place + len(self._ask)
        prompt = self.render(messages[:-1], ask=True)
        if not text.startswith(prompt):
            asks = f"the template asks for an answer with the text {prompt[-40:]!r}"
            raise TemplateRefusal(f"message {len(messages)}: {asks}, but does not write the answer behind it")
        return len(prompt)

    def _end_of_turn(self, text: str) -> str:
        """Returns the token that follows the answer of a text which ends with `ANSWER`."""
        tokenizer = self._tokenizer
        _, found, tail = text.rpartition(ANSWER["content"])
        if not found:
            raise TemplateRefusal("it leaves out the assistant's answer")
        added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        ids = [token for token in tokenizer(tail, add_special_tokens=False)["input_ids"] if token in added]
        for token in tokenizer.convert_ids_to_tokens(ids):
            if token.strip():  # some vocabularies add runs of spaces
                return str(token)
        written = f"what it writes behind one is {tail!r}" if tail.strip() else "it writes nothing behind one"
        raise ModelError(
            f"the chat template ends an answer with no token, so the model would never learn to stop: {written}",
            where="task.chat_template",
            allowed="a template that writes {{ eos_token }}, or another token of the vocabulary, behind each answer",
            fix=self._how_to_end(tail),
        )

    def _how_to_end(self, tail: str) -> str:
        if "<|im_end|>" in tail:
            tokens = "{new_tokens: ['<|im_start|>', '<|im_end|>']}"
            return f"set task.chat_template to plain, or add the tokens to the vocabulary, model: {tokens}"
        if self._tokenizer.eos_token is None:
            return "set eos_token in the tokenizer's files"
        return "set task.chat_template to plain, or to a .jinja file in which {{ eos_token }} follows an answer"


def _joined(answers: list[ChatText]) -> list[ChatText]:
    """Returns one text with all answers if the last text begins with each of the others, else the texts as they are."""
    last = answers[-1]
    if all(last.text.startswith(answer.text) for answer in answers):
        return [ChatText(last.text, tuple(span for answer in answers for span in answer.learned))]
    return answers


def _filled(outline: ChatText, contents: Sequence[str]) -> ChatText:
    """Returns an outline, which ends with an answer, with the contents of messages in their places."""
    cuts = [0, *chain.from_iterable(outline.learned)]
    parts = [
        PLACES.sub(lambda place: contents[int(place[1])], outline.text[begin:end]) for begin, end in pairwise(cuts)
    ]
    ends = list(accumulate(map(len, parts)))
    return ChatText("".join(parts), tuple(zip(ends[::2], ends[1::2], strict=True)))


def _check_complete(messages: Sequence[Message], text: str) -> None:
    """Raises where a template has silently left out a message; white space does not count.

    Raises:
        TemplateRefusal: With the role of the first message that is missing.
    """
    for message in messages:
        content = message["content"]
        if content.strip() not in text and not _squeezed_in(content, text):
            raise TemplateRefusal(
                f"the template leaves out, or changes, the {message['role']} message {content[:40]!r}"
            )


def _squeezed_in(content: str, text: str) -> bool:
    """Returns whether a content is in a text but for white space, as it is or as JSON, as results of tools are."""
    squeezed = "".join(text.split())
    forms = (content, json.dumps(content, ensure_ascii=False)[1:-1])
    return any("".join(form.split()) in squeezed for form in forms)
