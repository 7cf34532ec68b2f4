"""Supervised fine-tuning on conversations: the model learns to write the assistant's answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from adaptkit.data.chat import ChatTemplate, Learn, TemplateRefusal
from adaptkit.data.chat_templates import TEMPLATES, choose_template
from adaptkit.data.problems import data_error
from adaptkit.errors import Problem, RecipeError, did_you_mean
from adaptkit.task import BaseModel, Features, Metrics, Row, Splits, TaskCapabilities
from adaptkit.tasks._conversation import Conversation, read_conversations, without_answer, without_question
from adaptkit.tasks._examples import note_repeated
from adaptkit.tasks._generation import GeneratingMetrics, GenerationMetrics, GenerationOptions, Writer
from adaptkit.tasks._language import LanguageTask
from adaptkit.tasks._lessons import Rendered, last_answer, make_features, refused

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptkit.models.base.source import ModelSource
    from adaptkit.models.precision import Numerics
    from adaptkit.recipe import DataSpec
    from adaptkit.strategy import JSON


class SftOptions(GenerationOptions):
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
    too_long: Literal["error", "drop"] = Field(
        "error",
        description="What becomes of a conversation whose first learned answer begins beyond `data.max_length`: an "
        "error that names the row, or drop, which leaves such rows out and counts them.",
    )
    generate_rows: int = Field(
        0, ge=0, description="Evaluation rows whose last answer is generated, to be compared with the real one."
    )
    max_new_tokens: int = Field(256, ge=1, description="Tokens that a generated answer may have.")

    @field_validator("chat_template")
    @classmethod
    def _known(cls, choice: str) -> str:
        named = ["auto", *TEMPLATES]
        if choice not in named and not choice.endswith((".jinja", ".jinja2", ".j2")):
            hint = did_you_mean(choice, named) or "it is none of auto, chatml and plain, nor a .jinja file"
            raise ValueError(f"there is no chat template {choice!r}: {hint}")
        return choice

    @field_validator("learn")
    @classmethod
    def _has_answers(cls, learn: Learn, info: ValidationInfo) -> Learn:
        if learn == "all" and info.data.get("generate_rows"):
            raise ValueError("of all turns none is the answer that task.generate_rows could be compared with")
        return learn


class Sft(LanguageTask[SftOptions]):
    """Learns the assistant's turns of conversations, of one turn or many.

    Attributes:
        template: ``auto``, ``chatml``, ``plain``, or a whole template in Jinja; that from `load_base` on.
    """

    name = "sft"
    Options = SftOptions
    capabilities = TaskCapabilities(families=frozenset({"decoder"}), packing=True, generates=True)
    roles = ("messages",)
    optional_roles = ("system",)
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
            said = [_said(conversation) for conversation in conversations]
            self.notes += note_repeated(map(_said, train), said, split)

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
        """Returns the template, so that neither its file nor the base's own is needed."""
        return {"template": self.template}

    def load_state(self, state: Mapping[str, JSON]) -> None:
        """Takes back what `state` gave."""
        self.template = str(state["template"])

    def from_text(self, text: str) -> dict[str, Any]:
        """Returns a conversation in which a user has said one thing."""
        return {"messages": [{"role": "user", "content": text}]}

    def without_labels(self, row: Row) -> dict[str, Any]:
        """Returns the messages that are not the assistant's."""
        said = row.values.get("messages")
        if not isinstance(said, list):
            return dict(row.values)
        asked = [one for one in said if not isinstance(one, dict) or one.get("role") != "assistant"]
        return {**row.values, "messages": asked}

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
        rendered, refusals = self._render(conversations, chat, labelled=labelled)
        made = make_features(rendered, tokenizer, max_length)
        drop = labelled and self.options.too_long == "drop"
        problems += refusals + ([] if drop else made.too_long)
        if problems:
            raise data_error(problems)
        self._note_template(chat, tokenizer, rendered)
        total = f"of {len(rows):,} conversations"
        if made.cut:
            self.notes.append(f"{made.cut:,} {total} are longer than {max_length:,} tokens: their ends were cut off")
        if made.too_long:
            first = f"their first learned answer begins beyond {max_length:,} tokens ({made.too_long[0].where} …)"
            self.notes.append(f"{len(made.too_long):,} {total} were dropped: {first}")
        return made.features

    def feature_count(self, rows: int) -> int | None:
        """Returns as many as there are rows, unless some of them may be dropped."""
        return None if self.options.too_long == "drop" else rows

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
                problems.append(refused(refusal, conversation.where))
        return rendered, problems

    def _with_system(self, messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
        if self.options.system is None or messages[0]["role"] == "system":
            return list(messages)
        return [{"role": "system", "content": self.options.system}, *messages]

    # -- through the model ---------------------------------------------------------------------------

    def load_base(self, source: ModelSource, numerics: Numerics, seed: int) -> BaseModel:
        """Loads the base; its tokenizer has the chat template of the run, so that it is saved with the artifact."""
        base = super().load_base(source, numerics, seed)
        self.template = choose_template(self.template, source.tokenizer)
        if self.template != source.tokenizer.chat_template:
            base.tokenizer = copy(source.tokenizer)
            base.tokenizer.chat_template = self.template
        return base

    def metrics(self) -> Metrics:
        """Returns a collector of loss, perplexity, token accuracy and the figures of generated answers."""
        options, writer = self.options, self._writer()
        generated = GenerationMetrics(self.text_metrics(), options.generate_rows, writer)
        return GeneratingMetrics(
            self.kind,
            generated,
            lambda batch, row: last_answer(batch, row, writer.stop_ids),
            self.loss_chunk_tokens,
        )

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[dict[str, JSON]]:
        """Returns ``{"text": answer}`` for each row."""
        questions = [ids[there.bool()] for ids, there in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        return [{"text": text.strip()} for text in self._writer().write(model, questions)]

    def _writer(self) -> Writer:
        options, stop_ids = self.options, self._chat(self.tokenizer).stop_ids
        return Writer(self.tokenizer, self.kind, options.max_new_tokens, options.num_beams, stop_ids)

    # -- what a person should know -------------------------------------------------------------------

    def _note_unread(self, conversations: Sequence[Conversation]) -> None:
        keys = sorted({key for conversation in conversations for key in conversation.unread})
        if keys:
            self.notes.append(f"messages also have {', '.join(map(repr, keys[:5]))}: only role and content are read")

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
