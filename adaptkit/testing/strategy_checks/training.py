"""What training does, and what it leaves alone."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch

from adaptkit.recipe import Precision
from adaptkit.strategy import Strategy
from adaptkit.testing.check import NotApplicable, check, lacks
from adaptkit.testing.subject import Subject
from adaptkit.testing.trial import Trial, differing, some
from adaptkit.training.checkpoint import read_checkpoint, write_checkpoint
from adaptkit.training.optim import check_groups
from adaptkit.training.snapshot import restore_snapshot, take_snapshot

STEPS = 3
STEPS_TO_MOVE = 12  # within which a strategy that narrows what trains must have come to everything
STEPS_TO_LEARN = 40
SCHEDULE: dict[str, Any] = {"schedule": "linear", "warmup": 0.1}
LEARNED = 0.99  # of the loss before, at most


@check()
def check_everything_moves(subject: Subject) -> None:
    """Every tensor that trains gets a gradient and moves."""
    trial = subject.trial()
    start = {name: parameter.detach().clone() for name, parameter in trial.job.trainable().items()}
    still = list(start)
    for _ in range(STEPS_TO_MOVE):
        trial.step()
        parameters = dict(trial.model.named_parameters())
        still = [name for name in still if torch.equal(parameters[name], start[name])]
        if not still:
            return
    raise AssertionError(f"these train and have not moved in {STEPS_TO_MOVE} steps: {some(still)}")


@check(lacks("changes_base"))
def check_base_is_kept(subject: Subject) -> None:
    """The frozen base is the same bits after training."""
    _assert_base_is_kept(subject.trial())


def _assert_base_is_kept(trial: Trial) -> None:
    trial.step(STEPS)
    own = set(trial.adapted.context.new_parameters)
    now = trial.tensors()
    changed = sorted(
        name
        for name, (tensor, before) in trial.base_tensors.items()
        if name not in own and not (torch.equal(tensor, before) and torch.equal(now.get(name, before), before))
    )
    assert not changed, f"training has changed the base: {some(changed)}; declare changes_base, or leave it alone"


@check()
def check_loss_falls(subject: Subject) -> None:
    """On rows that can be learned by heart the loss falls, at the strategy's own rate and a recipe's usual schedule.

    It need not stay down: the rate is one for larger models.
    """
    trial = subject.trial(max_steps=STEPS_TO_LEARN, **SCHEDULE).without_dropout()
    first, *others = [record.loss for record in trial.step(STEPS_TO_LEARN)]  # each over all rows
    rate = trial.recipe.training.learning_rate
    found = f"the loss was {first:.4f} and never below {min(others):.4f} in {STEPS_TO_LEARN} steps at {rate}"
    assert min(others) <= LEARNED * first, found


@check()
def check_repeatable(subject: Subject) -> None:
    """The same run twice ends in the same bits."""
    ends = []
    for state in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(state)
            trial = subject.trial()
            trial.step(STEPS)
            ends.append(trial.tensors())
    other = differing(*ends)
    assert not other, f"two runs of one recipe differ in {some(other)}"


@check()
def check_two_runs(subject: Subject) -> None:
    """Two runs in one process do not meet: each ends as it would alone."""
    alone = _trained(subject.trial(seed=0).without_dropout())
    first, second = subject.trial(seed=0).without_dropout(), subject.trial(seed=1).without_dropout()
    for _ in range(STEPS):
        first.step()
        second.step()
    other = differing(alone, first.tensors())
    assert not other, (
        f"beside another run it ends otherwise in {some(other)}; keep state in the instance, not the class"
    )


@check()
def check_copy(subject: Subject) -> None:
    """A deep copy of the model computes the same, and training it leaves the original alone."""
    trial = subject.trial().move_away()
    before, logits = trial.tensors(), trial.logits()
    copied = copy.deepcopy(trial.model)
    assert torch.equal(trial.logits(copied), logits), "a copy.deepcopy of the model gives other logits"
    _move_all(copied)
    changed = differing(before, trial.tensors())
    assert not changed, f"the copy shares {some(changed)} with the model"
    assert torch.equal(trial.logits(), logits), "changing a copy of the model changes what the model computes"
    found = trial.logits(copied)
    _move_all(trial.model)
    assert torch.equal(found, trial.logits()), "a copy of the model computes with tensors of the model"


def _move_all(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)


@check()
def check_evaluation(subject: Subject) -> None:
    """An evaluation between two steps leaves no trace."""
    precisions: list[Precision | None] = [None]
    if subject.capabilities.quantized_base and subject.make().base_precision() is None:
        precisions.append("nf4")
    for precision in precisions:
        undisturbed = _trained(subject.trial(precision=precision))
        trial = subject.trial(precision=precision)
        for _ in range(STEPS):
            trial.step()
            trial.evaluate()
        other = differing(undisturbed, trial.tensors())
        assert not other, f"an evaluation between the steps changes {some(other)}"


@check()
def check_resume(subject: Subject) -> None:
    """A run that is stopped and goes on from its checkpoint ends in the same bits as one that is not."""
    whole = subject.trial()
    whole.step(2 * STEPS)
    stopped = subject.trial()
    stopped.step(STEPS)
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder), stopped.job.step, take_snapshot(stopped.job))
        resumed = subject.trial(initialize=False)
        restore_snapshot(resumed.job, read_checkpoint(path))
    resumed.step(STEPS)
    other = differing(whole.tensors(), resumed.tensors())
    assert not other, f"after a resume these differ: {some(other)}; see state() and training_state()"
    one, two = (_flat(trial.job.optimizer.state_dict()["state"]) for trial in (whole, resumed))
    assert not (other := differing(one, two)), f"after a resume the optimizer's state differs: {some(other)}"


def _flat(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Returns the tensors of a nested state by their path."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {key: tensor for part, inner in parts for key, tensor in _flat(inner, f"{name}/{part}").items()}


@check()
def check_optimizer(subject: Subject) -> None:
    """Every tensor that trains is in the optimizer once, at a positive rate, and nothing else is."""
    trial = subject.trial()
    groups = trial.job.optimizer.param_groups
    check_groups(trial.model, groups)
    rates = [peak for peak in trial.job.scheduler.peaks if not peak > 0]
    assert not rates, f"a group of the optimizer has the learning rate {rates[0]}"


@check()
def check_extra_loss(subject: Subject) -> None:
    """The additional loss is one finite number, from which what trains gets a gradient."""
    if subject.strategy.extra_loss is Strategy.extra_loss:
        raise NotApplicable("there is no additional loss")
    trial = subject.trial().move_away()
    extra = trial.strategy.extra_loss(trial.model)
    if extra is None:
        raise NotApplicable("there is no additional loss with these options")
    assert extra.ndim == 0, f"the additional loss has the shape {tuple(extra.shape)}, not ()"
    assert torch.isfinite(extra), f"the additional loss is {float(extra)}"
    assert extra.requires_grad, "the additional loss depends on nothing that trains"


def _trained(trial: Trial) -> dict[str, torch.Tensor]:
    trial.step(STEPS)
    return trial.tensors()
