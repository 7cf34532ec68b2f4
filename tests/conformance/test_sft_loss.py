"""The loss of conversations falls on the answers alone, and is the same however they are put into a batch."""

from __future__ import annotations

import random
from typing import Any

import pytest
import tiny
import torch
from chats import DIALOGUE, STYLES, tokenizer_of
from torch import Tensor, nn

from adaptkit.data.packing import collate_packed, pack
from adaptkit.models.base.source import ModelSource, open_source
from adaptkit.recipe import DataSpec, ModelSpec
from adaptkit.registry import load_registry
from adaptkit.task import Features, Row
from adaptkit.tasks.sft import Sft, SftOptions

DATA = DataSpec(train="train.jsonl")
WORDS = ("river", "hill", "sea", "cat", "dog", "garden", "far", "where", "begins", "ends")
CONVERSATIONS = 9


def conversation(generator: random.Random) -> list[dict[str, str]]:
    """Returns one to three questions, each with its answer."""

    def said() -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(1, 8)))

    return [{"role": role, "content": said()} for _ in range(generator.randint(1, 3)) for role in ("user", "assistant")]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A Llama of 2 layers with grouped heads, and a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    tokenizer = tokenizer_of("llama")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return open_source(ModelSpec(name=str(folder)))


@pytest.fixture
def task() -> Sft:
    made: Sft = load_registry().make_task(SftOptions(name="sft", max_new_tokens=30))
    return made


@pytest.fixture
def model(task: Sft, source: ModelSource) -> nn.Module:
    return task.load_base(source, tiny.numerics(), seed=0).module.eval()


def features_of(task: Sft, source: ModelSource, conversations: list[Any]) -> list[Features]:
    rows = [Row({"messages": messages}, f"row {number}") for number, messages in enumerate(conversations)]
    return task.features(rows, DATA, source.tokenizer, 512)


@pytest.fixture
def features(task: Sft, source: ModelSource) -> list[Features]:
    generator = random.Random(0)
    return features_of(task, source, [conversation(generator) for _ in range(CONVERSATIONS)])


def gradient(task: Sft, model: nn.Module, batches: list[dict[str, Tensor]]) -> Tensor:
    """Returns the gradient of the mean loss of an effective batch, ``(parameters,)``."""
    model.zero_grad()
    count = sum(task.count(batch) for batch in batches)
    for batch in batches:
        (task.loss(model, batch).total / count).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize("sequence", [1, 200, 10_000])
def test_the_gradient_does_not_depend_on_packing(
    task: Sft, source: ModelSource, model: nn.Module, features: list[Features], sequence: int
) -> None:
    padded = task.collate(features, source.tokenizer)
    sequences = pack(features, sequence)
    packed = collate_packed(sequences)
    assert task.count(padded) == task.count(packed) > 0
    assert difference(gradient(task, model, [padded]), gradient(task, model, [packed])) <= 2e-6
    assert (len(sequences) == 1) == (sequence == 10_000)


def test_the_gradient_does_not_depend_on_the_cut_into_micro_batches(
    task: Sft, source: ModelSource, model: nn.Module, features: list[Features]
) -> None:
    whole = gradient(task, model, [task.collate(features, source.tokenizer)])
    one_by_one = gradient(task, model, [task.collate([feature], source.tokenizer) for feature in features])
    assert difference(whole, one_by_one) <= 2e-6


def test_the_loss_is_that_of_the_answers_given_the_questions(task: Sft, source: ModelSource, model: nn.Module) -> None:
    """By hand: the probability of each token of an answer behind everything before it."""
    (feature,) = features_of(task, source, [DIALOGUE])
    tokenizer = source.tokenizer
    ids, by_hand, tokens = feature["input_ids"], 0.0, 0
    before: list[int] = []
    rest = tokenizer.decode(ids)
    for turn in (1, 3):
        answer = DIALOGUE[turn]["content"] + STYLES["llama"].end
        question, _, rest = rest.partition(answer)
        before += tokenizer(question, add_special_tokens=False)["input_ids"]
        written = tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert ids[: len(before) + len(written)] == before + written
        with torch.no_grad():
            log_probabilities = model(torch.tensor([before + written])).logits[0].log_softmax(-1)
        by_hand -= sum(float(log_probabilities[len(before) + k - 1, token]) for k, token in enumerate(written))
        tokens += len(written)
        before += written
    batch = task.collate([feature], tokenizer)
    assert task.count(batch) == tokens
    assert task.loss(model, batch).total.item() == pytest.approx(by_hand, rel=1e-5)


def test_questions_of_different_length_are_answered_in_one_batch_as_each_alone(
    task: Sft, source: ModelSource, model: nn.Module
) -> None:
    questions = ["Where?", "Where is the cat, and where does the river begin?", "a " * 30]
    rows = [Row(task.from_text(text), text) for text in questions]
    prompts = task.features(rows, DATA, source.tokenizer, 512, labelled=False)
    with torch.no_grad():
        together = task.predict(model, task.collate(prompts, source.tokenizer))
        alone = [task.predict(model, task.collate([prompt], source.tokenizer))[0] for prompt in prompts]
    assert together == alone
    assert len({answer["text"] for answer in alone}) == len(questions)


def learn(task: Sft, source: ModelSource, model: nn.Module, features: list[Features], steps: int = 60) -> float:
    """Trains all parameters on all features at once, and returns the loss in nats a token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = task.collate(features, source.tokenizer)
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = task.loss(model, batch).total / task.count(batch)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_a_model_that_has_learned_a_conversation_gives_its_answers_and_stops(
    task: Sft, source: ModelSource, model: nn.Module
) -> None:
    dialogue = [
        {"role": "user", "content": "Where is the cat?"},
        {"role": "assistant", "content": "In the garden."},
        {"role": "user", "content": "And the river?"},
        {"role": "assistant", "content": "In the hills."},
    ]
    assert learn(task, source, model, features_of(task, source, [dialogue])) < 0.05
    rows = [Row({"messages": dialogue[:turn]}, "row") for turn in (1, 3)]
    prompts = task.features(rows, DATA, source.tokenizer, 512, labelled=False)
    with torch.no_grad():
        answers = task.predict(model, task.collate(prompts, source.tokenizer))
    assert answers == [{"text": "In the garden."}, {"text": "In the hills."}]


def test_generated_answers_are_compared_with_the_last_of_each_row(source: ModelSource, model: nn.Module) -> None:
    options = SftOptions(name="sft", generate_rows=2, metrics=["exact-match"], max_new_tokens=30)
    task = load_registry().make_task(options)
    task.load_base(source, tiny.numerics(), seed=0)
    dialogues = [[DIALOGUE[0], {"role": "assistant", "content": "far"}, *DIALOGUE[2:]], DIALOGUE[:2]]
    features = features_of(task, source, dialogues)

    def figures() -> dict[str, float]:
        metrics = task.metrics()
        metrics.expect(len(features))
        with torch.no_grad():
            metrics.update(model, task.collate(features, source.tokenizer))
        return metrics.compute()

    assert figures()["exact_match"] == 0
    # Of the first row the last answer alone is learned, so that another one would be found out.
    last = load_registry().make_task(options.model_copy(update={"learn": "last-assistant"}))
    assert learn(last, source, model, features_of(last, source, dialogues)) < 0.05
    assert figures()["exact_match"] == 100


def test_no_answers_are_generated_unless_they_are_asked_for(
    task: Sft, source: ModelSource, model: nn.Module, features: list[Features]
) -> None:
    metrics = task.metrics()
    metrics.expect(len(features))
    with torch.no_grad():
        metrics.update(model, task.collate(features, source.tokenizer))
    assert metrics.compute().keys() == {"loss", "perplexity", "token_accuracy"}


def test_the_figures_of_learned_answers_are_those_of_the_loss(
    task: Sft, source: ModelSource, model: nn.Module, features: list[Features]
) -> None:
    metrics = task.metrics()
    with torch.no_grad():
        for half in (features[:4], features[4:]):
            metrics.update(model, task.collate(half, source.tokenizer))
        batch = task.collate(features, source.tokenizer)
        mean = float(task.loss(model, batch).total) / task.count(batch)
    figures = metrics.compute()
    assert figures["loss"] == pytest.approx(mean, rel=1e-5)
    assert {"perplexity", "token_accuracy"} <= figures.keys()
