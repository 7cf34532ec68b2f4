"""Which blocks LISA trains, when, and what is kept of the others."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adaptkit_lisa import Lisa, LisaOptions, drawn_blocks
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

from adaptkit import AdaptContext
from adaptkit.errors import RecipeError

BLOCKS = 6
BLOCK = "bert.encoder.layer."


def bert() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": BLOCKS, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=50, **sizes)).eval()


def t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=16, d_kv=8, num_heads=2, d_ff=16, num_layers=2, num_decoder_layers=4)
    )


def adapted(model: nn.Module, seed: int = 0, **options: Any) -> Lisa:
    """Returns LISA after it has adapted a model."""
    context = AdaptContext(
        family="encoder",
        task="text-classification",
        peft_task_type="SEQ_CLS",
        head_modules=("classifier",),
        new_parameters=(),
        tokenizer=None,
        total_steps=0,
        seed=seed,
        precision="fp32",
    )
    strategy = Lisa(LisaOptions.model_validate({"name": "lisa", **options}))
    strategy.adapt(model.requires_grad_(False), context)
    return strategy


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def drawn(model: Any) -> set[int]:
    """Returns the blocks that train; each trains whole or not at all."""
    whole = {
        index for index in range(BLOCKS) if all(p.requires_grad for p in model.bert.encoder.layer[index].parameters())
    }
    some = {int(name.removeprefix(BLOCK).partition(".")[0]) for name in trainable(model) if name.startswith(BLOCK)}
    assert whole == some
    return whole


def draws(seed: int, steps: range, **options: Any) -> list[set[int]]:
    model = bert()
    strategy = adapted(model, seed, **options)
    found = []
    for step in steps:
        strategy.before_step(model, step)
        found.append(drawn(model))
    return found


def test_so_many_blocks_train_for_so_many_steps_then_others_do() -> None:
    found = draws(0, range(12), activated_layers=2, interval_steps=4)
    assert {len(blocks) for blocks in found} == {2}
    periods = [found[first : first + 4] for first in (0, 4, 8)]
    assert all(period[0] == blocks for period in periods for blocks in period)
    assert len({frozenset(period[0]) for period in periods}) > 1


def test_what_is_outside_of_the_blocks_always_trains() -> None:
    model = bert()
    strategy = adapted(model)
    outside = {name for name, _ in model.named_parameters() if not name.startswith(BLOCK)}
    assert {"bert.embeddings.word_embeddings.weight", "classifier.weight"} <= outside
    for step in (0, 19, 20, 400):
        strategy.before_step(model, step)
        assert outside <= trainable(model)


def test_the_draw_depends_on_seed_and_period_and_not_on_the_steps_before() -> None:
    whole = draws(3, range(10), activated_layers=1, interval_steps=2)
    assert draws(3, range(5, 10), activated_layers=1, interval_steps=2) == whole[5:]
    assert draws(4, range(10), activated_layers=1, interval_steps=2) != whole


def test_every_block_is_drawn_as_often_as_any_other() -> None:
    periods = 3000
    counts = Counter(index for period in range(periods) for index in drawn_blocks(f"0/{period}", BLOCKS, 2))
    for index in range(BLOCKS):
        assert counts[index] / periods == pytest.approx(2 / BLOCKS, abs=0.03)


def test_in_an_encoder_decoder_blocks_of_both_stacks_train() -> None:
    model = t5()
    adapted(model, activated_layers=1).before_step(model, 0)
    stacks = Counter(
        name.partition(".block.")[0] for name in trainable(model) if name.endswith("SelfAttention.q.weight")
    )
    assert stacks == {"encoder": 1, "decoder": 1}


class Training:
    """Steps of AdamW with weight decay under LISA."""

    def __init__(self, optimizer: str = "adamw") -> None:
        self.model = bert()
        self.strategy = adapted(self.model, activated_layers=1, interval_steps=3)
        groups = [{"params": list(self.model.parameters()), "lr": 1e-2, "weight_decay": 0.1}]
        own = self.strategy.make_optimizer(groups, SimpleNamespace(optimizer=optimizer, beta2=0.999))
        self.optimizer = own or torch.optim.AdamW(groups)
        self.steps = 0

    def step(self) -> None:
        self.strategy.before_step(self.model, self.steps)
        self.model(input_ids=torch.arange(24).view(2, 12), labels=torch.tensor([0, 1])).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    def block(self, index: int) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.bert.encoder.layer[index].parameters()])


def test_a_block_that_is_not_drawn_stays_bit_for_bit_under_momentum_and_weight_decay() -> None:
    training = Training()
    for _ in range(9):
        before = [training.block(index) for index in range(BLOCKS)]
        training.step()
        moved = {index for index in range(BLOCKS) if not torch.equal(before[index], training.block(index))}
        assert moved == drawn(training.model)


def test_the_optimizer_holds_moments_of_what_trains_and_of_nothing_else() -> None:
    training = Training()
    for _ in range(9):
        training.step()
        training_now = {id(p) for p in training.model.parameters() if p.requires_grad}
        assert {id(p) for p in training.optimizer.state} == training_now


def test_an_optimizer_that_the_recipe_names_is_the_recipes() -> None:
    strategy = adapted(bert())
    assert strategy.make_optimizer([], SimpleNamespace(optimizer="sgd", beta2=0.999)) is None


def test_more_blocks_at_a_time_than_there_are_is_refused_with_their_number() -> None:
    with pytest.raises(RecipeError, match="activated_layers is 3, but the base has a stack of 2") as error:
        adapted(t5(), activated_layers=3)
    assert "1 to 2" in str(error.value)
