"""An evaluation leaves no trace in what is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from test_loss import GradientRecorder
from torch import Tensor

from adaptkit import runner
from adaptkit.recipe import Recipe
from adaptkit.training.checkpoint import latest_checkpoint, read_checkpoint
from adaptkit.training.evaluation import Evaluation, inference
from adaptkit.training.job import Job
from adaptkit.training.loop import train_step

MakeRecipe = Callable[..., Recipe]
EVERY_STRATEGY = pytest.mark.parametrize("strategy", tiny.STRATEGIES)


def first_gradient(job: Job) -> Tensor:
    job.step = 0
    train_step(job)
    return job.optimizer.optimizer.gradient


@EVERY_STRATEGY
def test_the_gradient_after_an_evaluation_is_the_one_before(strategy: str, exact_recipe: MakeRecipe) -> None:
    recipe = exact_recipe(strategy)
    job, adapted = tiny.make_job(recipe, optimizer=GradientRecorder)
    before = first_gradient(job)
    features = job.batches.features
    Evaluation(
        job.wrapped, job.task, features, adapted.base.tokenizer, job.numerics, recipe.training.micro_batch_tokens
    ).figures()
    assert torch.equal(first_gradient(job), before)


def test_four_bit_layers_never_repack_their_weights_for_inference(recipe: MakeRecipe) -> None:
    """Else, on CPUs with AVX512-BF16, bitsandbytes gives no gradient after the first evaluation."""
    from bitsandbytes.nn import Linear4bit

    job, _ = tiny.make_job(recipe("qlora"))
    layers = [module for module in job.model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 13
    assert [layer.support_avx512bf16_for_cpu for layer in layers] == [False] * 13


def test_modes_and_random_numbers_are_as_they_were(recipe: MakeRecipe) -> None:
    job, _ = tiny.make_job(recipe("linear-probe"))
    modes, drawn = [module.training for module in job.model.modules()], torch.get_rng_state()
    assert set(modes) == {True, False}
    with inference(job.model, job.numerics):
        assert not any(module.training for module in job.model.modules())
        assert not torch.is_grad_enabled()
        torch.rand(3)
    assert [module.training for module in job.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn)


@EVERY_STRATEGY
def test_runs_with_and_without_evaluations_end_with_the_same_weights(strategy: str, recipe: MakeRecipe) -> None:
    def last_weights(run: Recipe) -> dict[str, Tensor]:
        checkpoint = latest_checkpoint(Path(runner.run(run).directory) / "checkpoints")
        assert checkpoint is not None
        assert checkpoint.name == "step-00000004"
        model: dict[str, Tensor] = read_checkpoint(checkpoint)["model"]
        return model

    data = {"train": recipe(strategy).data.train}
    without = last_weights(recipe(strategy, "without", data=data, max_steps=4))
    evaluated = last_weights(recipe(strategy, "evaluated", max_steps=4, evaluate_every=1 / tiny.STEPS_PER_EPOCH))
    assert without.keys() == evaluated.keys()
    assert [name for name in without if not torch.equal(without[name], evaluated[name])] == []
