"""A run that cannot learn ends with the reason, never with a number that looks like one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from adaptkit import runner
from adaptkit.errors import AdaptkitError, ModelError, RecipeError, TrainingError
from adaptkit.recipe import Recipe
from adaptkit.strategy import AdaptContext, Strategy, StrategyOptions
from adaptkit.training.loop import train_step, training_steps

MakeRecipe = Callable[..., Recipe]


class Detached(nn.Linear):
    """Has parameters that its output does not depend on."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(features, self.weight.detach(), self.bias.detach())


class Disconnected(Strategy[StrategyOptions]):
    name = "disconnected"

    def adapt(self, model: nn.Module, context: AdaptContext) -> nn.Module:
        model.add_module("classifier", Detached(64, 2))
        model.get_submodule("bert.pooler").requires_grad_(True)
        return model


class Everything(Strategy[StrategyOptions]):
    name = "everything"

    def adapt(self, model: nn.Module, context: AdaptContext) -> nn.Module:
        return model.requires_grad_(True)


class Nothing(Strategy[StrategyOptions]):
    name = "nothing"
    trains_new_parameters = False

    def adapt(self, model: nn.Module, context: AdaptContext) -> nn.Module:
        return model


def logged(recipe: Recipe) -> list[dict[str, Any]]:
    lines = (Path(recipe.output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_trainable_tensor_without_gradient_is_an_error_that_names_it(recipe: MakeRecipe) -> None:
    job, _ = tiny.make_job(recipe("full"), Disconnected(StrategyOptions(name="disconnected")))
    with pytest.raises(TrainingError, match=r"get no gradient: .*classifier\.weight") as error:
        next(training_steps(job))
    assert "disconnected" in str(error.value)


def test_a_strategy_that_leaves_nothing_to_train_is_an_error(recipe: MakeRecipe) -> None:
    with pytest.raises(ModelError, match="leaves nothing to train"):
        tiny.make_job(recipe("full"), Nothing(StrategyOptions(name="nothing")))


def test_a_strategy_that_trains_a_quantised_base_is_told_to_declare_it(recipe: MakeRecipe) -> None:
    quantised = recipe("full").model_copy(
        update={"model": recipe("qlora").model.model_copy(update={"precision": "nf4"})}
    )
    with pytest.raises(ModelError, match="stored as nf4") as error:
        tiny.make_job(quantised, Everything(StrategyOptions(name="everything")))
    assert "quantized_base=False" in str(error.value)


def test_a_batch_without_labels_is_an_error_not_a_loss_of_zero(recipe: MakeRecipe) -> None:
    job, _ = tiny.make_job(recipe("lora"))
    for feature in job.batches.features:
        del feature["label"]
    with pytest.raises(TrainingError, match="nothing to learn from: no label counts"):
        next(training_steps(job))


def test_rows_without_a_label_change_neither_loss_nor_count(exact_recipe: MakeRecipe) -> None:
    job, _ = tiny.make_job(exact_recipe("lora"))
    rows = job.batches.rows_at(0)
    for row in rows[:3]:
        del job.batches.features[row]["label"]
    record = train_step(job)
    job, _ = tiny.make_job(exact_recipe("lora"))
    kept = [job.batches.features[row] for row in rows[3:]]
    with torch.no_grad():
        total = job.task.loss(job.model, job.task.collate(kept, job.batches._tokenizer)).total
    assert record.count == len(kept)
    assert record.loss == pytest.approx(float(total) / len(kept), rel=1e-5)


@pytest.mark.parametrize("where", ["bert.encoder.layer.0.output.dense.weight", "classifier.weight"])
def test_a_loss_that_is_not_finite_stops_before_the_step(where: str, recipe: MakeRecipe) -> None:
    job, _ = tiny.make_job(recipe("linear-probe", cache_frozen_features=False))
    with torch.no_grad():
        job.model.get_parameter(where).fill_(math.nan)
    before = tiny.every_tensor(job.model)
    with pytest.raises(TrainingError, match="the loss is not finite at step 1: loss nan"):
        train_step(job)
    after = tiny.every_tensor(job.model)
    assert all(torch.equal(before[name], after[name]) for name in before if name != where)
    assert job.step == 0


def test_a_run_that_diverges_stops_with_the_reason_and_logs_finite_numbers_only(recipe: MakeRecipe) -> None:
    diverging = recipe("full", learning_rate=1e30, schedule="constant", max_steps=20, optimizer="sgd")
    with pytest.raises(TrainingError, match="not finite") as error:
        runner.run(diverging)
    assert "learning_rate" in str(error.value)
    losses = [line["train/loss"] for line in logged(diverging)]
    assert losses
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


def test_an_evaluation_that_is_not_finite_stops_the_run_with_the_reason(recipe: MakeRecipe) -> None:
    diverging = recipe("full", learning_rate=1e30, schedule="constant", max_steps=20, optimizer="sgd", warmup=0.0)
    diverging = diverging.model_copy(
        update={"training": diverging.training.model_copy(update={"evaluate_every": 1 / tiny.STEPS_PER_EPOCH})}
    )
    with pytest.raises(TrainingError, match=r"eval/loss is nan at step 1") as error:
        runner.run(diverging)
    assert "learning_rate" in str(error.value)
    assert [line.keys() for line in logged(diverging) if "eval/loss" in line] == []


@pytest.mark.parametrize("strategy", ["lora", "qlora"])
def test_target_modules_that_match_nothing_are_refused_with_the_names_that_exist(
    strategy: str, recipe: MakeRecipe
) -> None:
    with pytest.raises(ModelError, match="target_modules") as error:
        runner.run(recipe({"name": strategy, "target_modules": ["q_proj"]}))
    assert "key, query, value" in str(error.value)


def test_more_last_layers_than_there_are_is_refused_with_their_number(recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="has 2 blocks") as error:
        runner.run(recipe({"name": "last-layers", "num_layers": 3}))
    assert "1 to 2" in str(error.value)


@pytest.mark.parametrize("strategy", ["full", "last-layers"])
def test_a_quantised_base_is_refused_where_the_base_trains(strategy: str, recipe: MakeRecipe) -> None:
    chosen = recipe(strategy)
    quantized = chosen.model_copy(update={"model": chosen.model.model_copy(update={"precision": "nf4"})})
    with pytest.raises(AdaptkitError, match="cannot be stored as nf4"):
        runner.run(quantized)


def test_a_run_that_ends_before_its_first_step_leaves_no_folder_behind(recipe: MakeRecipe) -> None:
    too_deep = recipe({"name": "last-layers", "num_layers": 99})
    with pytest.raises(RecipeError, match="num_layers"):
        runner.run(too_deep)
    assert not Path(too_deep.output).exists()
