"""The gradient of an effective batch is that of its loss, however the batch is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from adaptkit.recipe import Recipe
from adaptkit.training.loop import train_step

MakeRecipe = Callable[..., Recipe]
EVERY_STRATEGY = pytest.mark.parametrize("strategy", tiny.STRATEGIES)
ONE_ROW_A_PASS, SOME_ROWS, ALL_ROWS = 1, 60, 10**6


class GradientRecorder(torch.optim.SGD):
    """Moves nothing and keeps the gradient, ``(trainable parameters,)``."""

    def __init__(self, groups: list[dict[str, Any]], settings: object) -> None:
        super().__init__(groups)
        self.gradient = torch.empty(0)

    def step(self, closure: Any = None) -> Any:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])


def gradient(recipe: Recipe) -> tuple[Tensor, int, float, bool]:
    """Returns the gradient of the first step, its micro-batches, its loss, and whether it was computed in bf16."""
    job, _ = tiny.make_job(recipe, optimizer=GradientRecorder)
    cuts = len(job.batches.at(0))
    record = train_step(job)
    return job.optimizer.optimizer.gradient, cuts, record.loss, job.numerics.bf16


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / one.norm())


@EVERY_STRATEGY
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_the_gradient_does_not_depend_on_the_cut_into_micro_batches(
    strategy: str, class_weights: str, exact_recipe: MakeRecipe
) -> None:
    def cut(tokens: int) -> tuple[Tensor, int, float, bool]:
        task = {"class_weights": class_weights}
        return gradient(exact_recipe(strategy, task=task, micro_batch_tokens=tokens, max_grad_norm=None))

    whole, passes, loss, bf16 = cut(ALL_ROWS)
    assert passes == 1
    tolerance = 2e-2 if bf16 else 2e-6  # a quantised base computes in bf16 where the device is fast at it
    for tokens in (ONE_ROW_A_PASS, SOME_ROWS):
        part, passes, part_loss, _ = cut(tokens)
        assert 1 < passes <= tiny.EFFECTIVE_BATCH
        assert difference(whole, part) <= tolerance
        assert part_loss == pytest.approx(loss, rel=tolerance)
