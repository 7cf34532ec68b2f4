"""The loss of seq2seq is transformers' own, whatever the cut; generating leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from seq2seq_models import END, NUMBERS, bart, number_tokenizer, t5
from torch import Tensor, nn

from adaptkit.metrics.texts import ExactMatch
from adaptkit.models.precision import Numerics
from adaptkit.recipe import DataSpec
from adaptkit.registry import load_registry
from adaptkit.task import Features, Row
from adaptkit.tasks._generation import GenerationMetrics, Writer, generate
from adaptkit.tasks.seq2seq import Seq2Seq, Seq2SeqOptions
from adaptkit.training.evaluation import Evaluation

MODELS = {"T5": t5, "BART": bart}
EVERY_MODEL = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
NUMERICS = Numerics(torch.device("cpu"), "fp32", bf16=False)
MakeModel = Callable[..., nn.Module]


def seeded(make: MakeModel, **options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(**options)


def task(**options: Any) -> Seq2Seq:
    subject: Seq2Seq = load_registry().make_task(Seq2SeqOptions(name="seq2seq", **options))
    subject.tokenizer = number_tokenizer()
    return subject


def numbers(rows: int, longest: int = 9, seed: int = 0) -> list[Row]:
    """Returns rows of random numbers; the target is the source in reverse."""
    generator = random.Random(seed)
    values = []
    for _ in range(rows):
        words = [str(generator.randrange(NUMBERS)) for _ in range(generator.randint(1, longest))]
        values.append({"source": " ".join(words), "target": " ".join(reversed(words))})
    return [Row(value, f"row {index}") for index, value in enumerate(values)]


def made(subject: Seq2Seq, rows: Sequence[Row]) -> list[Features]:
    return subject.features(rows, DataSpec(train="train.jsonl"), subject.tokenizer, 32)


@EVERY_MODEL
def test_the_summed_loss_is_the_models_own_times_the_label_tokens(make: MakeModel) -> None:
    subject, model = task(), seeded(make)
    batch = subject.collate(made(subject, numbers(7)), subject.tokenizer)
    own = model(**batch).loss
    count = subject.count(batch)
    assert count == (batch["labels"] != -100).sum()
    torch.testing.assert_close(subject.loss(model, batch).total, own * count, rtol=1e-6, atol=0)


@EVERY_MODEL
def test_the_gradient_does_not_depend_on_the_cut_into_micro_batches(make: MakeModel) -> None:
    subject, model = task(), seeded(make).train()
    rows = made(subject, numbers(12))

    def gradient(size: int) -> Tensor:
        model.zero_grad()
        batches = [subject.collate(rows[begin : begin + size], subject.tokenizer) for begin in range(0, 12, size)]
        count = sum(map(subject.count, batches))
        for batch in batches:
            (subject.loss(model, batch).total / count).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    whole = gradient(12)
    for size in (1, 5):
        assert (gradient(size) - whole).norm() / whole.norm() <= 2e-6


@EVERY_MODEL
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_text_does_not_depend_on_what_is_generated_beside_it(make: MakeModel, num_beams: int) -> None:
    subject, model = task(num_beams=num_beams, max_new_tokens=8), seeded(make).eval()
    rows = made(subject, numbers(8))
    together = subject.predict(model, subject.collate(rows, subject.tokenizer))
    assert together == [subject.predict(model, subject.collate([row], subject.tokenizer))[0] for row in rows]


def test_a_decoder_writes_the_same_text_behind_any_padding_until_its_positions_end() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=NUMBERS + 4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=16, initializer_range=0.3, pad_token_id=0, eos_token_id=END,
    )  # fmt: skip
    model = seeded(lambda: LlamaForCausalLM(config)).eval()
    prompts = [torch.tensor(ids) for ids in ([5, 6, 7, 8, 9], [4], [11, 12])]
    writer = Writer(number_tokenizer(), "causal", 8)
    together = writer.write(model, prompts)
    assert together == [writer.write(model, [prompt])[0] for prompt in prompts]
    assert len(set(together)) == 3
    long = generate(model, batch_of(prompts), writer.tokenizer, 100, "causal")
    assert max(map(len, long)) == 16 - 5


@EVERY_MODEL
def test_greedy_search_writes_what_the_loss_takes_for_most_likely(make: MakeModel) -> None:
    """Training and writing begin alike: with the same token, behind the same source."""
    subject, model = task(max_new_tokens=6), seeded(make).eval()
    rows = made(subject, numbers(6))
    batch = subject.collate(rows, subject.tokenizer)
    for row, written in zip(rows, generate(model, batch, subject.tokenizer, 5, "seq2seq"), strict=True):
        row["labels"] = written
    figures = Evaluation(
        model, subject, [row for row in rows if row["labels"]], subject.tokenizer, NUMERICS, 100
    ).figures()
    assert figures["token_accuracy"] == 1


@pytest.mark.parametrize("ends", [(), (7,)])
def test_a_text_ends_before_the_first_token_that_ends_it(ends: tuple[int, ...]) -> None:
    subject = task()

    class Parrot(nn.Module):
        config = SimpleNamespace()

        def generate(self, **inputs: Any) -> Tensor:
            assert inputs["generation_config"].eos_token_id == sorted({END, *ends})
            return torch.tensor([[0, 5, 7, 6, END], [0, 7, END, 5, 0], [0, 5, 6, 8, 9]])

    written = generate(Parrot(), batch_of([torch.tensor([3])]), subject.tokenizer, 4, "seq2seq", ends)
    assert written == ([[5], [], [5, 6, 8, 9]] if ends else [[5, 7, 6], [7], [5, 6, 8, 9]])


@EVERY_MODEL
def test_what_a_model_was_told_for_another_task_does_not_change_a_text(make: MakeModel) -> None:
    subject, model = task(max_new_tokens=8), seeded(make).eval()
    batch = subject.collate(made(subject, numbers(8)), subject.tokenizer)
    plain = subject.predict(model, batch)
    model.generation_config.update(min_length=9, num_beams=4, do_sample=True, no_repeat_ngram_size=1, max_length=3)
    model.generation_config.update(eos_token_id=9, repetition_penalty=9.0)
    assert subject.predict(model, batch) == plain


def batch_of(prompts: Sequence[Tensor]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def state_of(model: Any) -> dict[str, Any]:
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_pre_hooks) for module in model.modules()],
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "generation": model.generation_config.to_dict(),
        "config": model.config.to_dict(),
        "attributes": sorted(vars(model)),
        "gradients": [parameter.grad for parameter in model.parameters()],
    }


@EVERY_MODEL
def test_an_evaluation_that_generates_leaves_no_trace(make: MakeModel) -> None:
    subject, model = task(metrics=["bleu", "chrf", "rouge", "exact-match"]), seeded(make, dropout=0.5)
    model.generation_config.update(max_length=50, min_length=9, num_beams=4, do_sample=True, temperature=0.5)
    rows = made(subject, numbers(9))
    model.train()
    model.get_input_embeddings().eval()
    before = state_of(model)
    first = Evaluation(model, subject, rows, subject.tokenizer, NUMERICS, 100).figures()
    assert state_of(model) == before
    assert first == Evaluation(model, subject, rows, subject.tokenizer, NUMERICS, 100).figures()
    names = {"loss", "perplexity", "token_accuracy", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match"}
    assert set(first) == names


def test_figures_do_not_depend_on_the_batches() -> None:
    subject, model = task(metrics=["bleu", "chrf", "rouge"], max_new_tokens=8), seeded(bart)
    rows = made(subject, numbers(15))
    whole = Evaluation(model, subject, rows, subject.tokenizer, NUMERICS, 10**6).figures()
    for tokens in (1, 60):
        assert Evaluation(model, subject, rows, subject.tokenizer, NUMERICS, tokens).figures() == pytest.approx(
            whole, rel=1e-5
        )


@pytest.mark.parametrize("options", [{"generate_rows": 0}, {"metrics": []}])
def test_nothing_is_generated_that_is_not_asked_for(options: dict[str, Any]) -> None:
    subject, model = task(**options), seeded(t5)
    model.generate = None
    figures = Evaluation(model, subject, made(subject, numbers(5)), subject.tokenizer, NUMERICS, 100).figures()
    assert set(figures) == {"loss", "perplexity", "token_accuracy"}


def test_chosen_rows_are_generated_once_in_batches_as_large_as_those_they_came_in() -> None:
    written: list[list[int]] = []

    def write(model: nn.Module, prompts: Sequence[Tensor]) -> list[str]:
        written.append([int(prompt) for prompt in prompts])
        return ["1"] * len(prompts)

    writer: Any = SimpleNamespace(write=write, read=str)
    metrics = GenerationMetrics([ExactMatch], 10, writer)
    metrics.expect(40)
    for begin in range(0, 40, 4):
        metrics.update(nn.Identity(), 4, lambda index, begin=begin: (torch.tensor(begin + index), "1"))
    assert [len(batch) for batch in written] == [4, 4, 2]
    assert [row for batch in written for row in batch] == list(range(3, 40, 4))
    assert metrics.compute() == {"exact_match": 100}


def test_a_tiny_t5_learns_to_reverse() -> None:
    subject = task(metrics=["exact-match"], max_new_tokens=6)
    train, held_out = made(subject, numbers(8000, longest=3)), made(subject, numbers(60, longest=3, seed=1))
    model = seeded(t5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    before = Evaluation(model, subject, held_out, subject.tokenizer, NUMERICS, 10**4).figures()
    for begin in range(0, len(train), 40):
        batch = subject.collate(train[begin : begin + 40], subject.tokenizer)
        (subject.loss(model, batch).total / subject.count(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = Evaluation(model, subject, held_out, subject.tokenizer, NUMERICS, 10**4).figures()
    assert after["loss"] < before["loss"] / 2
    assert after["exact_match"] > 50
