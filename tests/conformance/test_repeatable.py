"""The same recipe gives the same bits, and what is only there for speed changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from adaptkit import runner
from adaptkit.artifact.run import Run
from adaptkit.recipe import Recipe
from adaptkit.training.batches import CACHED
from adaptkit.training.features import CachedModel

MakeRecipe = Callable[..., Recipe]
EVERY_STRATEGY = pytest.mark.parametrize("strategy", tiny.STRATEGIES)


def adapter(run: Run) -> dict[str, Tensor]:
    return load_file(run.directory / "adapter" / "adapter_model.safetensors")


@EVERY_STRATEGY
def test_the_same_recipe_gives_the_same_adapter_bit_for_bit(strategy: str, recipe: MakeRecipe) -> None:
    def digest(output: str, seed: int) -> str:
        run = runner.run(recipe(strategy, output, max_steps=3, seed=seed))
        torch.manual_seed(torch.seed())  # whatever happened before in the process must not matter
        return hashlib.sha256((run.directory / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()

    first = digest("first", seed=1)
    assert digest("again", seed=1) == first
    assert digest("other", seed=2) != first


@pytest.mark.parametrize("pooling", ["native", "mean"])
def test_a_probe_on_cached_features_ends_with_the_weights_of_one_without(pooling: str, recipe: MakeRecipe) -> None:
    def run(output: str, cache: bool) -> Run:
        return runner.run(
            recipe("linear-probe", output, task={"pooling": pooling}, epochs=2, cache_frozen_features=cache)
        )

    cached, plain = run("cached", True), run("plain", False)
    one, other = adapter(cached), adapter(plain)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)
    assert cached.metrics["eval/loss"] == pytest.approx(plain.metrics["eval/loss"], abs=1e-5)


def test_the_frozen_part_runs_once_over_the_rows(recipe: MakeRecipe) -> None:
    job, _ = tiny.make_job(recipe("linear-probe"))
    assert isinstance(job.wrapped, CachedModel)
    assert all(row[CACHED].shape == (64,) for row in job.batches.features)
    job.model.get_submodule("bert").forward = lambda **_: pytest.fail("the backbone ran again")
    batch = job.batches.at(0)[0]
    assert job.wrapped(**{name: value for name, value in batch.items() if name != "labels"}).logits.shape[1] == 2


def test_recomputed_activations_give_the_same_weights(exact_recipe: MakeRecipe) -> None:
    plain = adapter(runner.run(exact_recipe("lora", output="plain", max_steps=3)))
    recomputed = adapter(runner.run(exact_recipe("lora", output="again", max_steps=3, gradient_checkpointing=True)))
    for name in plain:
        torch.testing.assert_close(plain[name], recomputed[name], rtol=0, atol=1e-6)
