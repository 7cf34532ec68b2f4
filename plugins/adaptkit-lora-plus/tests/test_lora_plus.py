"""The two learning rates of LoRA+."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adaptkit_lora_plus import LoraPlus, LoraPlusOptions
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from adaptkit import AdaptContext

RATE = 1e-3


def adapted(**options: Any) -> tuple[LoraPlus, nn.Module]:
    """Returns LoRA+ and a tiny BERT that it has adapted; its new head trains."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes)).eval().requires_grad_(False)
    context = AdaptContext(
        family="encoder",
        task="text-classification",
        peft_task_type="SEQ_CLS",
        head_modules=("classifier",),
        new_parameters=("classifier.weight", "classifier.bias"),
        tokenizer=None,
        total_steps=0,
        seed=0,
        precision="fp32",
    )
    strategy = LoraPlus(LoraPlusOptions.model_validate({"name": "lora-plus", "r": 4, **options}))
    strategy.adapt(model, context)
    model.classifier.requires_grad_(True)
    return strategy, model


def rates(strategy: LoraPlus, model: nn.Module) -> dict[str, float]:
    """Returns the learning rate of each trainable parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = strategy.parameter_groups(model, RATE)
    found = {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    assert found.keys() == set(names.values())
    return found


@pytest.mark.parametrize("ratio", [1.0, 4.0, 16.0])
def test_every_b_has_the_ratio_times_the_rate_of_all_else(ratio: float) -> None:
    for name, rate in rates(*adapted(lr_ratio=ratio)).items():
        assert rate == pytest.approx(RATE * (ratio if "lora_B" in name else 1.0)), name


def test_the_ratio_is_16_unless_a_recipe_says_otherwise() -> None:
    assert {round(rate / RATE) for rate in rates(*adapted()).values()} == {1, 16}


def test_in_the_first_step_of_adamw_b_moves_by_the_ratio_times_the_rate() -> None:
    strategy, model = adapted()
    groups = strategy.parameter_groups(model, RATE)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    ids = torch.arange(24).view(2, 12)
    model(input_ids=ids, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    ups = [p for name, p in model.named_parameters() if "lora_B" in name]
    moved = torch.cat([p.detach().abs().flatten() for p in ups])  # B begins at zero
    assert moved.median() == pytest.approx(16 * RATE, rel=0.01)


def test_the_recipes_weight_decay_is_on_matrices_alone() -> None:
    strategy, model = adapted()
    for group in strategy.parameter_groups(model, RATE):
        recipes = "weight_decay" not in group
        assert {p.ndim >= 2 for p in group["params"]} == {recipes}
        assert recipes or group["weight_decay"] == 0.0
