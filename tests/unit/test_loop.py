"""The order and the arithmetic of one optimizer step, on a model of two numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptkit.errors import TrainingError
from adaptkit.strategy import Strategy, StrategyOptions
from adaptkit.task import LossSum
from adaptkit.training.job import Job
from adaptkit.training.loop import train_step, training_steps
from adaptkit.training.optim import make_scheduler

X = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [1.0, 1.0]])
Y = torch.tensor([1.0, -1.0, 2.0, 0.0])


class Regression:
    """Half the squared error, weighted row by row; each micro-batch may have a loss beside it."""

    def __init__(self, weights: list[float], beside: float | None = None) -> None:
        self.weights, self.beside = torch.tensor(weights), beside

    def count(self, batch: dict[str, Tensor]) -> float:
        return float(self.weights[batch["rows"]].sum())

    def locate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSum:
        rows = batch["rows"]
        errors = (model(X[rows]).squeeze(-1) - Y[rows]) ** 2 / 2
        total = (self.weights[rows] * errors).sum()
        extra = None if self.beside is None else self.beside * next(model.parameters()).sum()
        return LossSum(total, extra)


class Recorder(Strategy[StrategyOptions]):
    """Notes every call, with what there is to see at that moment."""

    name = "recorder"

    def __init__(self, beside: float | None = None) -> None:
        super().__init__(StrategyOptions(name="recorder"))
        self.calls: list[tuple[str, int | None, bool]] = []
        self.beside = beside

    def adapt(self, model: nn.Module, context: Any) -> nn.Module:
        return model

    def note(self, call: str, model: nn.Module, step: int | None) -> None:
        self.calls.append((call, step, any(p.grad is not None for p in model.parameters())))

    def before_step(self, model: nn.Module, step: int) -> None:
        self.note("before_step", model, step)

    def after_step(self, model: nn.Module, step: int) -> None:
        self.note("after_step", model, step)

    def extra_loss(self, model: nn.Module) -> Tensor | None:
        self.note("extra_loss", model, None)
        return None if self.beside is None else self.beside * next(model.parameters()).sum()


def make_job(
    cuts: list[list[int]],
    *,
    weights: list[float] | None = None,
    beside: float | None = None,
    strategy: Strategy[Any] | None = None,
    lr: float = 0.1,
    **settings: Any,
) -> Job:
    """Returns a job of three steps of plain gradient descent, each over the same micro-batches."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    batches = SimpleNamespace(steps_per_epoch=2, at=lambda step: [{"rows": torch.tensor(cut)} for cut in cuts])
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"), backward=lambda loss: loss.backward())
    numerics: Any = SimpleNamespace(autocast=nullcontext)
    return Job(
        model=model,
        wrapped=model,
        strategy=strategy or Recorder(),
        task=Regression(weights or [1.0] * 4, beside),  # type: ignore[arg-type]
        batches=batches,
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, "linear", 3, 0.0),
        accelerator=accelerator,
        numerics=numerics,
        total_steps=3,
        **{"max_grad_norm": None, **settings},
    )


def gradient(weight: Tensor, weights: Tensor) -> Tensor:
    """Returns the gradient of the weighted mean over all rows, from its formula."""
    errors = X @ weight.T - Y[:, None]
    return ((weights[:, None] * errors).T @ X) / weights.sum()


@pytest.mark.parametrize("cuts", [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[3], [0, 1, 2]], [[0], [1], [2], [3]]])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0, 1.0], [2.0, 0.5, 0.0, 1.0]])
def test_a_step_goes_down_the_gradient_of_the_weighted_mean(cuts: list[list[int]], weights: list[float]) -> None:
    job = make_job(cuts, weights=weights)
    before = job.model.weight.detach().clone()
    expected = gradient(before, torch.tensor(weights))
    record = train_step(job)
    torch.testing.assert_close(job.model.weight.detach(), before - 0.1 * expected)
    assert record.count == sum(weights)
    assert record.grad_norm == pytest.approx(float(expected.norm()))
    errors = (X @ before.T).squeeze(-1) - Y
    assert record.loss == pytest.approx(float((torch.tensor(weights) * errors**2).sum() / 2 / sum(weights)))


def test_losses_beside_the_counted_one_are_not_divided_by_the_count() -> None:
    plain, beside = make_job([[0, 1], [2, 3]]), make_job([[0, 1], [2, 3]], beside=0.5, strategy=Recorder(beside=2.0))
    total = float(plain.model.weight.sum())
    assert train_step(beside).loss == pytest.approx(train_step(plain).loss + 0.5 * total + 2.0 * total)
    torch.testing.assert_close(beside.model.weight, plain.model.weight - 0.1 * 2.5)


def test_the_strategy_is_called_once_per_step_with_the_gradients_at_hand() -> None:
    strategy = Recorder()
    list(training_steps(make_job([[0, 1], [2, 3]], strategy=strategy)))
    assert strategy.calls == [
        call
        for step in range(3)
        for call in (("before_step", step, False), ("extra_loss", None, True), ("after_step", step, True))
    ]


def test_the_norm_is_reported_before_it_is_clipped() -> None:
    free, clipped = make_job([[0, 1, 2, 3]]), make_job([[0, 1, 2, 3]], max_grad_norm=0.01)
    before = clipped.model.weight.detach().clone()
    assert train_step(clipped).grad_norm == pytest.approx(train_step(free).grad_norm)
    assert float((clipped.model.weight - before).norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_a_record_has_the_learning_rate_that_the_step_was_taken_with() -> None:
    records = list(training_steps(make_job([[0, 1, 2, 3]])))
    assert [record.learning_rate for record in records] == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3])
    assert [(record.step, record.epoch) for record in records] == [(1, 0.5), (2, 1.0), (3, 1.5)]


def test_a_job_goes_on_from_the_step_that_it_stands_at() -> None:
    job = make_job([[0, 1, 2, 3]])
    job.step = 2
    assert [record.step for record in training_steps(job)] == [3]
    assert list(training_steps(job)) == []


def test_between_two_records_there_is_no_gradient() -> None:
    job = make_job([[0, 1, 2, 3]])
    for _ in training_steps(job):
        assert job.model.weight.grad is None


@pytest.mark.parametrize("count", [0.0, float("nan")])
def test_a_batch_without_anything_that_counts_is_an_error(count: float) -> None:
    job = make_job([[0, 1], [2, 3]], weights=[count] * 4)
    with pytest.raises(TrainingError, match="step 1 has nothing to learn from"):
        train_step(job)


@pytest.fixture
def broken() -> Iterator[Job]:
    """A job whose weights are as they were afterwards."""
    job = make_job([[0, 1], [2, 3]])
    before = job.model.weight.detach().clone()
    yield job
    assert torch.equal(job.model.weight, before)
    assert job.step == 0


def test_a_loss_that_is_not_finite_is_an_error_before_the_step(broken: Job) -> None:
    broken.task.weights[3] = float("inf")
    broken.task.count = lambda batch: 1.0  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="the loss is not finite at step 1"):
        train_step(broken)


def test_a_gradient_that_is_not_finite_is_an_error_before_the_step(broken: Job) -> None:
    broken.model.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=r"the gradient is not finite at step 1: loss [0-9.]+, gradient norm nan"):
        train_step(broken)


def test_a_tensor_that_the_loss_does_not_depend_on_is_named(broken: Job) -> None:
    broken.model.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    with pytest.raises(TrainingError, match=r"1 trainable tensor.* get no gradient: unused"):
        train_step(broken)
