"""Passes that are played back give what passes that are taken give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptkit.recipe import parse_recipe
from adaptkit.registry import load_registry
from adaptkit.testing.bases import workshop
from adaptkit.testing.trial import Trial, make_trial
from adaptkit.training import graphs
from adaptkit.training.graphs import (
    PASSES_BEFORE,
    Recorder,
    Recording,
    can_be_recorded,
    recorder,
    without_idle_mask,
)

STEPS = 8


def trial(strategy: str = "lora", precision: str | None = None, **training: Any) -> Trial:
    registry = load_registry()
    values = {
        "model": {"name": workshop().base("llama"), "precision": precision},
        "task": "causal-lm",
        "data": {"train": workshop().rows("causal-lm"), "max_length": 8},
        "strategy": {"name": strategy, "lora_dropout": 0.0} if "lora" in strategy else strategy,
        "training": {"max_steps": STEPS, "effective_batch": 4, "micro_batch_tokens": 16, **training},
        "output": "unused",
    }
    recipe = parse_recipe(values, resolver=registry)
    return make_trial(recipe, registry.strategy(recipe.strategy.name)(recipe.strategy), registry)


class Replayed:
    """In place of a CUDA graph: does again what was recorded."""

    def __init__(self, take: Any, inputs: dict[str, Tensor], count: Tensor, parameters: list[nn.Parameter]) -> None:
        self._take, self._inputs, self._count, self._parameters = take, inputs, count, parameters
        self.loss = torch.zeros((), device=count.device)
        self.gradients = {parameter: torch.zeros_like(parameter) for parameter in parameters}

    def replay(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
        self.loss.copy_(self._take(self._inputs, self._count))
        for parameter, place in self.gradients.items():
            assert parameter.grad is not None
            place.copy_(parameter.grad)


class OnTheCPU(Recorder):
    """Records without CUDA."""

    def _record(self, key: Any, batch: Any, count: float, take: Any) -> bool:
        device = self._parameters[0].device
        inputs = {name: tensor.to(device, copy=True) for name, tensor in batch.items()}
        divisor = torch.tensor(count, device=device)
        replayed: Any = Replayed(take, inputs, divisor, self._parameters)
        self._recordings[key] = Recording(replayed, inputs, divisor, replayed.loss, replayed.gradients)
        return True


def figures(one: Trial) -> list[tuple[float, float]]:
    return [(record.loss, record.grad_norm) for record in one.step(STEPS)]


def test_several_passes_a_step_add_up_as_they_do_without_recordings() -> None:
    plain, recorded = trial(), trial()
    recorded.job.recorder = OnTheCPU(list(recorded.job.trainable().values()))
    expected, found = figures(plain), figures(recorded)
    assert len(recorded.job.recorder._recordings) >= 1
    for one, other in zip(expected, found, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    for name, parameter in plain.job.trainable().items():
        torch.testing.assert_close(parameter, recorded.job.trainable()[name], rtol=1e-4, atol=1e-6)


def test_a_shape_is_recorded_when_it_has_come_a_few_times_and_what_runs_out_of_memory_is_never_again() -> None:
    made = OnTheCPU([nn.Parameter(torch.ones(2))])
    (parameter,) = made._parameters

    def take(inputs: dict[str, Tensor], count: Tensor) -> Tensor:
        loss = (parameter * inputs["x"]).sum() / count
        loss.backward()
        return loss.detach()

    batch = {"x": torch.ones(3, 2)}
    for _ in range(PASSES_BEFORE):
        assert made.run(batch, 2.0, 1, take) is None
    played = made.run(batch, 2.0, 1, take)
    assert played is not None
    assert float(played) == 3.0
    assert made.run({"x": torch.ones(4, 2)}, 2.0, 1, take) is None
    assert made.stop()
    assert not made.stop()
    assert made.run(batch, 2.0, 1, take) is None


def test_what_one_shape_left_outlives_another_that_was_recorded_before() -> None:
    """Recordings share memory: those that are played again write over what later ones have left there."""
    made = OnTheCPU([nn.Parameter(torch.ones(2))])
    (parameter,) = made._parameters

    def take(inputs: dict[str, Tensor], count: Tensor) -> Tensor:
        for later in list(made._recordings.values())[list(made._recordings).index(shape(inputs)) + 1 :]:
            later.gradients[parameter].fill_(torch.nan)
        loss = (parameter * inputs["x"]).sum() / count
        loss.backward()
        return loss.detach()

    def shape(batch: dict[str, Tensor]) -> Any:
        return (1, ("x", *batch["x"].shape))

    first, second = {"x": torch.ones(3, 2)}, {"x": torch.ones(4, 2)}
    for batch in (first, second):
        made._seen[shape(batch)] = PASSES_BEFORE
        assert made.run(batch, 1.0, 1, take) is not None
    parameter.grad = None
    for batch in (second, first, second, first):
        made.run(batch, 1.0, 1, take)
    torch.testing.assert_close(parameter.grad, torch.full((2,), 14.0))


def test_what_was_forgotten_is_recorded_again() -> None:
    made = trial()
    made.job.recorder = OnTheCPU(list(made.job.trainable().values()))
    figures(made)
    assert made.job.recorder.forget()
    assert not made.job.recorder.forget()
    made.job.total_steps += 1
    made.step()
    assert made.job.recorder._recordings


def test_an_idle_mask_is_left_out() -> None:
    whole = {"input_ids": torch.zeros(1, 3), "attention_mask": torch.ones(1, 3)}
    assert without_idle_mask(whole).keys() == {"input_ids"}
    padded = {**whole, "attention_mask": torch.tensor([[1, 1, 0]])}
    assert without_idle_mask(padded) is padded


def test_without_cuda_nothing_is_recorded() -> None:
    job = trial().job
    assert recorder(job.model, job.strategy, job.optimizer, torch.device("cpu")) is None


@pytest.mark.parametrize(("precision", "can"), [("bf16", True), ("nf4", True), ("int8", False)])
def test_layers_that_the_host_must_look_into_are_not_recorded(
    precision: Any, can: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "SHARE", 1.0)
    made = trial(precision=precision)
    assert can_be_recorded(made.model, made.strategy) == can


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", ["lora", "qlora", "prefix-tuning"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_checkpointing": True}, {"gradient_checkpointing": True, "offload": ["activations", "embeddings"]}],
)
def test_on_a_gpu_what_is_played_back_gives_what_is_taken(
    strategy: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaptkit.models.efficiency import host_activations, host_embeddings

    monkeypatch.setattr(graphs, "SHARE", 1.0)  # of a tiny base an adapter is a large part
    for module in (host_activations, host_embeddings):
        monkeypatch.setattr(module, "MIN_BYTES", 1)
    plain, recorded = trial(strategy, cuda_graphs="never", **settings), trial(strategy, **settings)
    assert recorded.job.recorder is not None
    for one, other in zip(figures(plain), figures(recorded), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert recorded.job.recorder.why_not is None
    assert recorded.job.recorder._recordings
    for name, parameter in plain.job.trainable().items():
        torch.testing.assert_close(parameter, recorded.job.trainable()[name], rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("breaks", ["looks", "runs out of memory"])
def test_on_a_gpu_a_recording_that_fails_leaves_no_trace(breaks: str) -> None:
    parameter = nn.Parameter(torch.ones(2, device="cuda"))
    made, stream, side = Recorder([parameter]), torch.cuda.current_stream(), torch.cuda.Stream()

    def take(inputs: dict[str, Tensor], count: Tensor) -> Tensor:
        held = torch.ones(2**28, device="cuda", dtype=torch.uint8)
        side.wait_stream(torch.cuda.current_stream())  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):
            held.zero_()
        if breaks == "looks":
            float(inputs["x"].sum())
        return torch.empty(2**50, device="cuda")

    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    batch, key = {"x": torch.ones(3, 2).pin_memory()}, (1, ("x", 3, 2))
    made._seen[key] = PASSES_BEFORE
    assert made.run(batch, 1.0, 1, take) is None
    assert made.why_not
    assert torch.cuda.current_stream() == stream
    assert torch.randn(3, device="cuda").shape == (3,)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2**22
