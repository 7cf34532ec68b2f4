"""The next token of running text: pre-training of decoders, from scratch or continued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from adaptkit.data.problems import data_error
from adaptkit.errors import Problem, RecipeError
from adaptkit.task import IGNORE_INDEX, Features, Row, TaskCapabilities
from adaptkit.tasks._generation import generate
from adaptkit.tasks._running_text import RunningTextOptions, RunningTextTask, cut, cut_note, frame_of, joined, tokenize

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptkit.strategy import JSON


class CausalLMOptions(RunningTextOptions):
    """The keys of ``task:`` for causal language modelling."""

    max_new_tokens: int = Field(64, ge=1, description="Tokens that a prediction continues a prompt by, at the most.")


class CausalLM(RunningTextTask[CausalLMOptions]):
    """Predicts every token from those before it.

    Documents keep the token that the tokenizer begins them with, and end with the end token, so that the model
    learns to stop. A block begins with the last token of the block before: every token but the first of all
    is predicted exactly once.
    """

    name = "causal-lm"
    Options = CausalLMOptions
    capabilities = TaskCapabilities(families=frozenset({"decoder"}), packing=True)
    peft_task_type = "CAUSAL_LM"
    kind = "causal"

    def blocks(self, rows: Sequence[Row], tokenizer: Any, length: int) -> list[Features]:
        """Cuts the texts into blocks; the first token of each is only read."""
        if length < 2:
            raise RecipeError(
                "a block of 1 token leaves nothing to predict",
                where="data.max_length",
                allowed="at least 2",
                fix="raise it, or leave it out to take what the base model can",
            )
        frame = frame_of(tokenizer)
        if not frame.end:
            self.notes.append("the tokenizer has no end token: texts are joined without one, and no end is learned")
        documents = [[*frame.prefix, *ids, *frame.end] for ids in tokenize(rows, tokenizer)["input_ids"]]
        if self.options.join:
            documents = [joined(documents)]
        else:
            self.notes += cut_note(documents, length)
        short = [row for row, document in zip(rows, documents, strict=False) if len(document) < 2]
        if short:
            found = "the text is a single token, so that there is nothing to predict"
            raise data_error([Problem(found, row.where, fix="give longer texts") for row in short])
        blocks = [block for document in documents for block in cut(document, length, overlap=1)]
        return [{"input_ids": block, "labels": [IGNORE_INDEX, *block[1:]]} for block in blocks]

    def prompts(self, rows: Sequence[Row], tokenizer: Any, max_length: int) -> list[Features]:
        """Tokenizes prompts; of a long one the end is kept, so that there is room to continue it."""
        prefix = frame_of(tokenizer).prefix
        room = max(max_length // 2, max_length - self.options.max_new_tokens) - len(prefix)
        prompts = tokenize(rows, tokenizer)["input_ids"]
        return [{"input_ids": [*prefix, *ids[-max(1, room) :]]} for ids in prompts]

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor]) -> list[dict[str, JSON]]:
        """Returns ``{"text": continuation}`` for each prompt, by greedy search."""
        written = generate(model, batch, self.tokenizer, self.options.max_new_tokens, self.kind)
        return [{"text": self.tokenizer.decode(ids, skip_special_tokens=True)} for ids in written]
