"""Supervised fine-tuning on conversations: the model learns to write the assistant's answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field, field_validator

from adaptkit.data.chat import ChatTemplate, ChatText, Learn, TemplateRefusal, encode_chats
from adaptkit.data.chat_templates import TEMPLATES, choose_template
from adaptkit.data.problems import data_error
from adaptkit.errors import Problem, RecipeError, did_you_mean
from adaptkit.task import IGNORE_INDEX, Features, Row, Splits, TaskCapabilities, TaskOptions
from adaptkit.tasks._conversation import Conversation, read_conversations, without_answer, without_question
from adaptkit.tasks._generation import generate
from adaptkit.tasks._language import LanguageTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptkit.recipe import DataSpec
    from adaptkit.strategy import JSON

Rendered: TypeAlias = tuple[Conversation, list[ChatText]]


class SftOptions(TaskOptions):
    """The keys of ``task:`` for supervised fine-tuning."""

    chat_template: str = Field(
        "auto",
        description="How a conversation becomes text. auto: the tokenizer's own template, or plain where it has none; "
        "plain: 'User: …' and 'Assistant: …', without new tokens; chatml; or a .jinja file.",
    )
    system: str | None = Field(
        None, min_length=1, description="A system message for the conversations that begin with none."
    )
    learn: Learn = Field(
        "assistant", description="Where the loss falls: on the assistant's turns, on the last of them, or on all turns."
    )
    max_new_tokens: int = Field(256, ge=1, description="Tokens that a predicted answer may have.")

    @field_validator("chat_template")
    @classmethod
    def _known(cls, choice: str) -> str:
        named = ["auto", *TEMPLATES]
        if choice not in named and not choice.endswith((".jinja", ".jinja2", ".j2")):
            hint = did_you_mean(choice, named) or "it is none of auto, chatml and plain, nor a .jinja file"
            raise ValueError(f"there is no chat template {choice!r}: {hint}")
        return choice


class Sft(LanguageTask[SftOptions]):
    """Learns the assistant's turns of conversations, of one turn or many.

    Attributes:
        template: ``auto``, ``chatml``, ``plain``, or a whole template in Jinja.
    """

    name = "sft"
    Options = SftOptions
    capabilities = TaskCapabilities(families=frozenset({"decoder"}), packing=True, generates=True)
    roles = ("messages",)
    peft_task_type = "CAUSAL_LM"
    kind = "causal"

    def __init__(self, options: SftOptions) -> None:
        super().__init__(options)
        self.template = "auto"
        self._facts: list[str] = []

    # -- before any model ----------------------------------------------------------------------------

    def prepare(self, splits: Splits, data: DataSpec) -> None:
        """Checks the messages of all splits, and reads the template if it is a file.

        Raises:
            RecipeError: The template's file cannot be read.
            DataError: Everything that is wrong in any split, the first ten problems in full.
        """
        self.template = _read_template(self.options.chat_template)
        problems = [] if splits.train else [Problem("there are no training rows", allowed="one conversation or more")]
        by_split: dict[str, list[Conversation]] = {}
        for split, rows in {"train": splits.train, "evaluation": splits.evaluation, "test": splits.test}.items():
            by_split[split], found = read_conversations(rows)
            problems += found + without_answer(by_split[split])
        if problems:
            raise data_error(problems)
        train = by_split.pop("train")
        self._facts = _facts(train)
        self._note_unread(train)
        for split, conversations in by_split.items():
            self._note_duplicates(train, conversations, split)

    def check(self, rows: Sequence[Row], *, labelled: bool) -> None:
        """Checks rows that come after training; those without labels are to be answered by `predict`.

        Raises:
            DataError: A message cannot be used, or a row has nothing to learn or nothing to answer.
        """
        conversations, problems = read_conversations(rows)
        problems += without_answer(conversations) if labelled else without_question(conversations)
        if problems:
            raise data_error(problems)

    def state(self) -> dict[str, JSON]:
        """Returns the template, so that its file is no longer needed."""
        return {"template": self.template}

    def load_state(self, state: Mapping[str, JSON]) -> None:
        """Takes back what `state` gave."""
        self.template = str(state["template"])

    def from_text(self, text: str) -> dict[str, Any]:
        """Returns a conversation in which a user has said one thing."""
        return {"messages": [{"role": "user", "content": text}]}

    def texts(self, rows: Sequence[Row]) -> Iterator[str]:
        """Yields what is said in the rows."""
        for conversation in read_conversations(rows)[0]:
            yield from (message["content"] for message in conversation.messages)

    def facts(self) -> list[str]:
        """Returns how many conversations there are, how long they are, and who speaks."""
        return self._facts

    # -- from rows to batches ------------------------------------------------------------------------

    def features(
        self, rows: Sequence[Row], data: DataSpec, tokenizer: Any, max_length: int, *, labelled: bool = True
    ) -> list[Features]:
        """Renders and tokenizes conversations; a feature has ``input_ids`` and ``labels``, -100 outside of answers.

        One feature a row, except under a template that writes earlier turns otherwise than the last one: there one
        an answer. Rows that are to be answered give ``input_ids`` alone.

        Raises:
            DataError: A message cannot be used, the template refuses a conversation, no answer is left after the
                cut, or a row that is to be answered is too long.
            ModelError: The template cannot be used with this tokenizer.
        """
        chat = self._chat(tokenizer)
        conversations, problems = read_conversations(rows)
        rendered, refused = self._render(conversations, chat, labelled=labelled)
        features, unfit, cut = _tokenize(rendered, tokenizer, max_length)
        problems += refused + unfit
        if problems:
            raise data_error(problems)
        self._note_template(chat, tokenizer, rendered)
        if cut:
            longer = f"{cut:,} of {len(rows):,} conversations are longer than {max_length:,} tokens"
            self.notes.append(f"{longer}: their ends were cut off")
        return features

    def _chat(self, tokenizer: Any) -> ChatTemplate:
        return ChatTemplate(tokenizer, choose_template(self.template, tokenizer))

    def _render(
        self, conversations: Sequence[Conversation], chat: ChatTemplate, *, labelled: bool
    ) -> tuple[list[Rendered], list[Problem]]:
        """Returns what is to be learned of conversations, or their questions; and what the template refuses."""
        rendered: list[Rendered] = []
        problems = []
        for conversation in conversations:
            try:
                if not (labelled and conversation.has_answer):
                    texts = [chat.question(self._with_system(conversation.question))]
                else:
                    texts = chat.lessons(self._with_system(conversation.messages), self.options.learn)
                rendered.append((conversation, texts))
            except TemplateRefusal as refusal:
                problems.append(_refused(refusal, conversation.where))
        return rendered, problems

    def _with_system(self, messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
        if self.options.system is None or messages[0]["role"] == "system":
            return list(messages)
        return [{"role": "system", "content": self.options.system}, *messages]

    # -- through the model ---------------------------------------------------------------------------

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[dict[str, JSON]]:
        """Returns ``{"text": answer}`` for each row, by greedy search."""
        stop_ids = self._chat(self.tokenizer).stop_ids
        answers = generate(model, batch, self.tokenizer, self.options.max_new_tokens, self.kind, stop_ids)
        return [{"text": self.tokenizer.decode(answer, skip_special_tokens=True).strip()} for answer in answers]

    # -- what a person should know -------------------------------------------------------------------

    def _note_unread(self, conversations: Sequence[Conversation]) -> None:
        keys = sorted({key for conversation in conversations for key in conversation.unread})
        if keys:
            self.notes.append(f"messages also have {', '.join(map(repr, keys[:5]))}: only role and content are read")

    def _note_duplicates(self, train: Sequence[Conversation], other: Sequence[Conversation], split: str) -> None:
        known = {_said(conversation) for conversation in train}
        repeated = sum(_said(conversation) in known for conversation in other)
        if repeated:
            self.notes.append(
                f"{repeated:,} of {len(other):,} {split} rows are also training rows, so the {split} figures flatter"
            )

    def _note_template(self, chat: ChatTemplate, tokenizer: Any, rendered: Sequence[Rendered]) -> None:
        if self.template == "auto" and not tokenizer.chat_template:
            note = f"the tokenizer has no chat template, so plain is taken: User: … Assistant: …{chat.end_token}"
            self.notes += [note] if note not in self.notes else []
        split = [len(texts) for _, texts in rendered if len(texts) > 1]
        if split:
            self.notes.append(
                f"the chat template writes a turn otherwise once another follows: {len(split):,} conversations became "
                f"{sum(split):,} sequences, one for each answer"
            )
        marked = sum(any(chat.end_token in said for said in _said(conversation)) for conversation, _ in rendered)
        if marked:
            found = f"{marked:,} conversations contain the text {chat.end_token!r}"
            self.notes.append(f"{found}, which the model reads as the end of a turn")


def _read_template(choice: str) -> str:
    """Returns the name of a template as it is, and the text of a template's file.

    Raises:
        RecipeError: The file cannot be read.
    """
    if choice == "auto" or choice in TEMPLATES:
        return choice
    try:
        return Path(choice).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise RecipeError(
            f"the chat template {choice!r} cannot be read: {reason}",
            where="task.chat_template",
            allowed=f"auto, {', '.join(TEMPLATES)}, or the path of a .jinja file",
            fix="check the path; it is taken from the folder in which adaptkit runs",
        ) from error


def _facts(conversations: Sequence[Conversation]) -> list[str]:
    lengths = [len(conversation.messages) for conversation in conversations]
    roles = Counter(message["role"] for conversation in conversations for message in conversation.messages)
    least, most = min(lengths), max(lengths)
    length = f"{least:,} to {most:,} messages (median {median(lengths):g})" if least < most else f"{most:,} messages"
    return [
        f"conversations: {len(lengths):,}, of {length}",
        "messages: " + ", ".join(f"{count:,} {role}" for role, count in roles.most_common()),
    ]


def _said(conversation: Conversation) -> tuple[str, ...]:
    return tuple(message["content"] for message in conversation.messages)


def _tokenize(
    rendered: Sequence[Rendered], tokenizer: Any, max_length: int
) -> tuple[list[Features], list[Problem], int]:
    """Returns features, cut at the end, the problems of rows that give none, and how many rows were cut."""
    encoded = iter(encode_chats([text for _, texts in rendered for text in texts], tokenizer))
    features: list[Features] = []
    problems = []
    cut = 0
    for conversation, texts in rendered:
        parts = [next(encoded) for _ in texts]
        kept = [feature for ids, labels in parts if (feature := _feature(ids, labels, max_length))]
        features += kept
        if kept:
            cut += any(len(ids) > max_length for ids, _ in parts)
        else:
            problems.append(_too_long(*parts[0], conversation.where, max_length))
    return features, problems, cut


def _feature(ids: list[int], labels: list[int], max_length: int) -> Features | None:
    """Returns a feature, cut at the end; None where no label is left, or where a question would be cut."""
    if all(label == IGNORE_INDEX for label in labels):
        # An answer needs at least one place behind the question.
        return {"input_ids": ids} if len(ids) < max_length else None
    # The first token is predicted from nothing.
    learns = any(label != IGNORE_INDEX for label in labels[1:max_length])
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]} if learns else None


def _refused(refusal: TemplateRefusal, where: str) -> Problem:
    fix = "change the row or remove it, or choose another template: task.chat_template"
    return Problem(f"the chat template does not take this conversation: {refusal}", where, fix=fix)


def _too_long(ids: Sequence[int], labels: Sequence[int], where: str, max_length: int) -> Problem:
    """Returns the problem of a row whose question alone fills all the room there is."""
    before = next((place for place, label in enumerate(labels) if place and label != IGNORE_INDEX), len(ids))
    return Problem(
        f"what comes before the answer has {before:,} tokens, so of {max_length:,} none is left for the answer",
        where,
        allowed=f"fewer than {max_length:,} tokens before the answer",
        fix=f"raise data.max_length to more than {before:,}, or shorten or remove the row",
    )
