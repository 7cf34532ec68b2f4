"""Texts that a model writes itself: as predictions, and to be compared with the wanted ones in an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from adaptkit.task import TaskOptions
from adaptkit.tasks._language import LanguageMetrics

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adaptkit.metric import TextMetric
    from adaptkit.models.language.model import LanguageModelKind
    from adaptkit.task import ChunkTokens


class GenerationOptions(TaskOptions):
    """The keys of ``task:`` of a task that generates."""

    metrics: list[str] = Field(
        ["chrf"],
        description="Figures that compare generated texts with the wanted ones, these as the tokenizer reads them and "
        "as long as they were left; `adaptkit metrics` lists them.",
    )
    generate_rows: int = Field(
        200, ge=0, description="Evaluation rows for which a text is generated; the loss is over all rows."
    )
    max_new_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Tokens that a generated text may have. Default: those of the longest training target."
    )
    num_beams: int = Field(1, ge=1, description="Width of the beam search; 1: greedy search.")

    def text_metrics(self) -> list[str]:
        """Returns the names of text metrics."""
        return self.metrics


def generate(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    tokenizer: Any,
    max_new_tokens: int,
    kind: LanguageModelKind,
    stop_ids: Collection[int] = (),
    num_beams: int = 1,
) -> list[list[int]]:
    """Lets a model write, by a search that draws no random number.

    What the model's generation config says of another task (a least length, no repetitions) is left aside, what
    it says of the model (a forced first token) is not; the config itself is not changed.

    Args:
        model: A causal or seq2seq model in eval mode.
        batch: ``input_ids`` and ``attention_mask`` ``(batch, seq)``, padded on the right.
        tokenizer: Of the base.
        max_new_tokens: At most; fewer where a causal model has no positions left behind its longest prompt.
        kind: Of the model.
        stop_ids: Tokens that end a text, besides the tokenizer's end token.
        num_beams: Width of the beam search; 1: greedy search.

    Returns:
        The new token ids of each row, up to the first token that ends it.
    """
    from adaptkit.models.efficiency.host_head import visit_of

    subject: Any = model
    input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
    if kind == "causal":
        input_ids, attention_mask = _left_padded(input_ids, attention_mask)
        positions = getattr(subject.config, "max_position_embeddings", None) or max_new_tokens + input_ids.shape[1]
        max_new_tokens = max(1, min(max_new_tokens, positions - input_ids.shape[1]))
    ends = {tokenizer.eos_token_id, *stop_ids} - {None}
    settings = _search(max_new_tokens, num_beams, sorted(ends), tokenizer.pad_token_id)
    # While it writes with a cache, a mixture of experts cannot compute the load of its experts.
    routers = {"output_router_logits": False} if getattr(subject.config, "output_router_logits", False) else {}
    visit = visit_of(subject)  # else an output layer that waits in the host's memory would come for every token
    written = subject.generate(
        input_ids=input_ids, attention_mask=attention_mask, generation_config=settings, **routers
    )
    del visit
    new = written[:, input_ids.shape[1] if kind == "causal" else 1 :].tolist()
    return [row[: next((place for place, token in enumerate(row) if token in ends), len(row))] for row in new]


def _search(max_new_tokens: int, num_beams: int, ends: list[int], padding: int | None) -> Any:
    """Returns a generation config; what is None in it is filled in from the model's own."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=False,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=padding or 0,
        min_length=0,
        no_repeat_ngram_size=0,
        repetition_penalty=1.0,
        length_penalty=1.0,
        early_stopping=False,
        # Without sampling these do nothing; transformers warns of any other value.
        temperature=1.0,
        top_k=50,
        top_p=1.0,
    )


def _left_padded(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ids and mask ``(batch, seq)`` with the padding moved to the left, where writing does not meet it."""
    order = attention_mask.argsort(dim=1, stable=True)
    return input_ids.gather(1, order), attention_mask.gather(1, order)


@dataclass(frozen=True)
class Writer:
    """Turns prompts into texts.

    Attributes:
        tokenizer: Of the model.
        kind: Of the model.
        max_new_tokens: Tokens of a text at the most.
        num_beams: Width of the search.
        stop_ids: Tokens that end a text, besides the tokenizer's end token.
    """

    tokenizer: Any
    kind: LanguageModelKind
    max_new_tokens: int
    num_beams: int = 1
    stop_ids: Collection[int] = ()

    def write(self, model: nn.Module, prompts: Sequence[Tensor]) -> list[str]:
        """Returns the text that the model writes for each prompt.

        Args:
            model: In eval mode.
            prompts: Token ids without padding, each of shape ``(tokens,)``: what an encoder reads or a decoder
                continues.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        batch = {
            "input_ids": pad_sequence(list(prompts), True, self.tokenizer.pad_token_id or 0),
            "attention_mask": pad_sequence([torch.ones_like(prompt) for prompt in prompts], True),
        }
        written = generate(model, batch, self.tokenizer, self.max_new_tokens, self.kind, self.stop_ids, self.num_beams)
        return [self.read(tokens) for tokens in written]

    def read(self, tokens: Sequence[int] | Tensor) -> str:
        """Returns the text of token ids, without special tokens."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text


class EvenSample:
    """Chooses rows of a stream, spread evenly over it and the same ones every time.

    Args:
        wanted: How many rows.
        total: Rows of the stream; all are chosen where there are no more than wanted.
    """

    def __init__(self, wanted: int, total: int) -> None:
        self._wanted, self._total, self._seen = min(wanted, total), total, 0

    def take(self, rows: int) -> list[int]:
        """Returns which of the next ``rows`` rows are chosen, counted from the first of them."""
        begin, self._seen = self._seen, self._seen + rows
        return [index - begin for index in range(begin, min(self._seen, self._total)) if self._is_chosen(index)]

    def _is_chosen(self, index: int) -> bool:
        return (index + 1) * self._wanted // self._total > index * self._wanted // self._total

    @property
    def complete(self) -> bool:
        """Whether no further row will be chosen."""
        return self._seen >= self._total


class GenerationMetrics:
    """Figures of generated texts, over a sample of the evaluation rows.

    Evaluation rows come sorted by length; the sample is spread evenly over them. Chosen rows wait until there are
    as many as an evaluation batch has: to generate for the few of each batch alone takes several times as long.

    Args:
        metrics: Their classes.
        rows: How many rows at the most.
        writer: Of the texts.
    """

    def __init__(self, metrics: Sequence[type[TextMetric]], rows: int, writer: Writer) -> None:
        self._metrics = [metric() for metric in metrics]
        self._rows = rows if metrics else 0
        self._sample = EvenSample(self._rows, self._rows)
        self._writer = writer
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._compared = 0

    def expect(self, rows: int) -> None:
        """Is told, before the first batch, how many rows will come; else the first ones are the sample."""
        self._sample = EvenSample(self._rows, rows)

    def update(self, model: nn.Module, rows: int, row: Callable[[int], tuple[Tensor, Tensor]]) -> None:
        """Takes a batch.

        Args:
            model: In eval mode.
            rows: Of the batch.
            row: Returns, for one of them, the token ids of the prompt and of the wanted text, without padding.
        """
        self._waiting += [row(index) for index in self._sample.take(rows)]
        if self._waiting and (len(self._waiting) >= rows or self._sample.complete):
            self._compare(model)

    def _compare(self, model: nn.Module) -> None:
        texts = self._writer.write(model, [prompt for prompt, _ in self._waiting])
        for text, (_, wanted) in zip(texts, self._waiting, strict=True):
            reference = self._writer.read(wanted)
            for metric in self._metrics:
                metric.update(text, reference)
        self._compared += len(texts)
        self._waiting = []

    def compute(self) -> dict[str, float]:
        """Returns the figures by name; none where no text was generated."""
        if not self._compared:
            return {}
        return {name: value for metric in self._metrics for name, value in metric.compute().items()}


class GeneratingMetrics(LanguageMetrics):
    """The figures of the loss over all rows, and those of texts generated for some.

    Args:
        kind: Of the model.
        generated: Collects the figures of texts.
        row: Returns, for a row of a batch, the token ids of the prompt and of the wanted text, without padding.
        loss_chunk_tokens: As `Task.loss_chunk_tokens`.
    """

    def __init__(
        self,
        kind: LanguageModelKind,
        generated: GenerationMetrics,
        row: Callable[[Mapping[str, Tensor], int], tuple[Tensor, Tensor]],
        loss_chunk_tokens: ChunkTokens = "auto",
    ) -> None:
        super().__init__(kind, loss_chunk_tokens)
        self._generated, self._row = generated, row

    def expect(self, rows: int) -> None:
        """Is told, before the first batch, how many rows will come."""
        self._generated.expect(rows)

    def update(self, model: nn.Module, batch: Mapping[str, Tensor]) -> None:
        """Takes one batch."""
        super().update(model, batch)
        self._generated.update(model, len(batch["labels"]), lambda index: self._row(batch, index))

    def compute(self) -> dict[str, float]:
        """Returns ``loss``, ``perplexity``, ``token_accuracy`` and the figures of the metrics that were asked for."""
        return {**super().compute(), **self._generated.compute()}
