"""An optimizer that steps within the backward pass gives the weights of one that steps after it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adaptkit.errors import FitError, TrainingError
from adaptkit.models.compatibility import check_compatibility
from adaptkit.recipe import TrainingSpec
from adaptkit.registry import load_registry
from adaptkit.strategy import Strategy, StrategyOptions
from adaptkit.testing.subject import Subject
from adaptkit.testing.trial import Trial, make_trial
from adaptkit.training.checkpoint import read_checkpoint, write_checkpoint
from adaptkit.training.in_backward import InBackward
from adaptkit.training.loop import train_step
from adaptkit.training.rehearsal import rehearse
from adaptkit.training.snapshot import restore_snapshot, take_snapshot

DROPOUT = {"gpt2": {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2}}
COMMON: Mapping[str, Any] = {
    "max_grad_norm": None,
    "max_steps": 6,
    "effective_batch": 4,
    "schedule": "linear",
    "warmup": 0.3,
    "weight_decay": 0.01,
    "learning_rate": 1e-3,
}


def trial(base: str, strategy: str = "full", config: dict[str, float] | None = None, **training: Any) -> Trial:
    registry = load_registry()
    subject = Subject(registry.strategy(strategy), {}, base)
    recipe = subject.recipe(**{**COMMON, **training})
    model = recipe.model.model_copy(update={"config": config or {}})
    return make_trial(recipe.model_copy(update={"model": model}), subject.make(), registry)


def trained(made: Trial) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in made.job.trainable().items()}


def assert_same_bits(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "paged-adamw-8bit", "lion-8bit", "sgd", "adafactor"])
@pytest.mark.parametrize("base", ["gpt2", "t5"])  # with tensors that are used several times
def test_the_weights_are_the_same_bits(base: str, optimizer: str) -> None:
    config = DROPOUT.get(base)
    after = trial(base, config=config, optimizer=optimizer)
    start, wanted = trained(after), [train_step(after.job) for _ in range(4)]
    within = trial(base, config=config, optimizer=optimizer, optimizer_in_backward=True)
    for one in wanted:
        other = train_step(within.job)
        assert (other.loss, other.learning_rate) == (one.loss, one.learning_rate)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-6)
    assert_same_bits(trained(within), trained(after))
    assert not any(torch.equal(tensor, start[name]) for name, tensor in trained(within).items())


@pytest.mark.parametrize("recomputed", [True, "selective"])
def test_the_weights_are_the_same_where_activations_are_recomputed(recomputed: Any) -> None:
    after = trial("llama", gradient_checkpointing=recomputed)
    within = trial("llama", gradient_checkpointing=recomputed, optimizer_in_backward=True)
    for _ in range(3):
        train_step(after.job)
        train_step(within.job)
    assert_same_bits(trained(within), trained(after))


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "adafactor"])
def test_a_resumed_run_goes_on_bit_for_bit_in_either_way(optimizer: str, tmp_path: Path) -> None:
    made = trial("bert", optimizer=optimizer, optimizer_in_backward=True)
    for _ in range(2):
        train_step(made.job)
    checkpoint = write_checkpoint(tmp_path, made.job.step, take_snapshot(made.job))
    for _ in range(2):
        train_step(made.job)
    for in_backward in (True, False):
        again = trial("bert", optimizer=optimizer, optimizer_in_backward=in_backward)
        restore_snapshot(again.job, read_checkpoint(checkpoint))
        for _ in range(2):
            train_step(again.job)
        assert_same_bits(trained(again), trained(made))


def test_no_two_gradients_are_in_memory_at_once() -> None:
    made = trial("llama", optimizer_in_backward=True)
    train_step(made.job)
    parameters = list(made.job.trainable().values())
    most = 0

    def look(_: nn.Parameter) -> None:
        nonlocal most
        most = max(most, sum(parameter.grad is not None for parameter in parameters))

    assert isinstance(made.job.optimizer, InBackward)
    for parameter in parameters:  # after the hook that steps
        parameter.register_post_accumulate_grad_hook(look)
    train_step(made.job)
    assert most == 0


def test_a_gradient_that_is_only_looked_at_changes_nothing() -> None:
    made, plain = trial("bert", optimizer_in_backward=True), trial("bert")
    before = trained(made)
    assert torch.equal(made.gradient(made.batches(10**6)), plain.gradient(plain.batches(10**6)))
    rehearse(made.job)
    assert_same_bits(trained(made), before)
    assert made.job.optimizer.state_dict()["state"] == {}
    assert not any(parameter.grad is not None for parameter in made.model.parameters())


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    made = trial("bert", optimizer_in_backward=True)
    with torch.no_grad():
        made.model.get_parameter("bert.embeddings.word_embeddings.weight").fill_(torch.inf)
    before = trained(made)
    with pytest.raises(TrainingError, match="the loss is not finite"):
        train_step(made.job)
    assert_same_bits(
        {name: tensor.nan_to_num() for name, tensor in trained(made).items()},
        {name: tensor.nan_to_num() for name, tensor in before.items()},
    )


def test_steps_of_several_passes_are_refused_before_the_first() -> None:
    with pytest.raises(TrainingError, match="forward passes") as refused:
        trial("bert", optimizer_in_backward=True, micro_batch_tokens=40)
    assert "micro_batch_tokens" in str(refused.value.problems[0].fix)


def test_a_pass_that_does_not_fit_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trial("bert", optimizer_in_backward=True)

    def exhausted(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(made.task, "loss", exhausted)
    with pytest.raises(FitError, match="optimizer_in_backward"):
        train_step(made.job)


def problems(strategy: type[Strategy[Any]], **training: Any) -> list[str]:
    registry = load_registry()
    recipe = Subject(registry.strategy("full"), {}, "bert").recipe()
    made = strategy(StrategyOptions(name=strategy.name))
    settings = recipe.training.model_copy(update=dict(TrainingSpec(**training)))
    recipe = recipe.model_copy(update={"training": settings})
    try:
        check_compatibility(recipe, made, registry.make_task(recipe.task), "encoder")
    except Exception as error:
        return [str(problem.fix) for problem in error.problems]  # type: ignore[attr-defined]
    return []


class Plain(Strategy[StrategyOptions]):
    name = "plain"

    def adapt(self, model: nn.Module, context: Any) -> nn.Module:
        return model.requires_grad_(True)


class Greedy(Plain):
    name = "greedy"

    def after_step(self, model: nn.Module, step: int) -> None:
        pass


def test_a_recipe_that_cannot_step_within_the_backward_pass_is_refused() -> None:
    assert problems(Plain, optimizer_in_backward=True, max_grad_norm=None) == []
    (fix,) = problems(Plain, optimizer_in_backward=True)
    assert "max_grad_norm to null" in fix
    (fix,) = problems(Greedy, optimizer_in_backward=True, max_grad_norm=None)
    assert "another strategy" in fix
    assert problems(Greedy) == []


def test_activations_wait_only_where_blocks_are_recomputed() -> None:
    (fix,) = problems(Plain, offload=["activations"], gradient_checkpointing=False)
    assert "gradient_checkpointing to true" in fix
    assert problems(Plain, offload=["activations"], gradient_checkpointing="selective") == []
    assert problems(Plain) == []


def test_an_optimizer_that_learns_in_its_groups_is_refused() -> None:
    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            for group in self.param_groups:
                group["steps"] = group.get("steps", 0) + 1

    weight = nn.Parameter(torch.ones(2))
    optimizer = InBackward(Counting([weight], lr=0.1))
    with pytest.raises(TrainingError, match="parameter groups"), optimizer.stepping():
        weight.sum().backward()


def test_small_tensors_keep_whole_states_in_8_bit_optimizers() -> None:
    made = trial("bert", optimizer="adamw-8bit", optimizer_in_backward=True)
    train_step(made.job)
    found = {
        (parameter.numel() >= 4096, made.job.optimizer.state[parameter]["state1"].dtype)
        for parameter in made.job.trainable().values()
    }
    assert found == {(True, torch.uint8), (False, torch.float32)}
