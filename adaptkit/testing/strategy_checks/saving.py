"""What is saved, and what loading makes of it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adaptkit.errors import CheckpointError
from adaptkit.testing.check import check
from adaptkit.testing.strategy_checks.training import STEPS
from adaptkit.testing.subject import Subject
from adaptkit.testing.trial import Trial, differing, some
from adaptkit.training.checkpoint import write_checkpoint
from adaptkit.training.snapshot import take_snapshot

OTHER_SEED = 7


def _saved(trial: Trial) -> dict[str, Tensor]:
    """Returns what is saved, through a file as the artifact has it."""
    state = {name: tensor.contiguous().cpu().clone() for name, tensor in trial.strategy.state(trial.model).items()}
    with tempfile.TemporaryDirectory() as folder:
        save_file(state, Path(folder) / "state.safetensors")
        loaded: dict[str, Tensor] = load_file(Path(folder) / "state.safetensors")
    return loaded


@check()
def check_saved_and_loaded(subject: Subject) -> None:
    """What was trained comes back bit for bit on a fresh base, whatever seed that was built with."""
    trained = subject.trial().move_away()
    trained.step(STEPS)
    loaded = subject.trial(initialize=False, seed=OTHER_SEED)
    loaded.strategy.load_state(loaded.model, _saved(trained))
    lost = differing(trained.tensors(), loaded.tensors())
    assert not lost, f"not saved, or not loaded: {some(lost)}; state() names all that may train or that adapt added"
    assert torch.equal(trained.logits(), loaded.logits()), "the loaded model gives other logits than the saved one"


@check()
def check_missing_tensor(subject: Subject) -> None:
    """A saved tensor that is missing is an error."""
    trial = subject.trial()
    state = _saved(trial)
    assert state, "state() is empty: nothing would be saved"
    state.pop(next(reversed(state)))
    _assert_refused(trial, state, "a tensor is missing")


@check()
def check_unexpected_tensor(subject: Subject) -> None:
    """A saved tensor that does not belong to the model is an error."""
    trial = subject.trial()
    _assert_refused(trial, {**_saved(trial), "no.such.tensor": torch.zeros(1)}, "there is one tensor too many")


@check()
def check_misshapen_tensor(subject: Subject) -> None:
    """A saved tensor of another shape is an error."""
    trial = subject.trial()
    state = _saved(trial)
    assert state, "state() is empty: nothing would be saved"
    name = next(reversed(state))
    _assert_refused(trial, {**state, name: torch.zeros((3, *state[name].shape))}, f"{name!r} has another shape")


def _assert_refused(trial: Trial, state: Mapping[str, Tensor], what: str) -> None:
    try:
        trial.strategy.load_state(trial.model, state)
    except CheckpointError:
        return
    raise AssertionError(f"load_state says nothing although {what}; raise a CheckpointError, as the default does")


@check()
def check_files(subject: Subject) -> None:
    """Checkpoint and artifact are safetensors and JSON."""
    trial = subject.trial()
    trial.step(STEPS)
    tensors, values = trial.strategy.training_state()
    wrong = sorted(name for name, tensor in tensors.items() if not isinstance(tensor, Tensor))
    assert not wrong, f"training_state() gives as tensors what are none: {some(wrong)}"
    for what, value in (("training_state()", values), ("adapter_files()", trial.strategy.adapter_files(trial.model))):
        try:
            again = json.loads(json.dumps(value))
        except (TypeError, ValueError) as error:
            raise AssertionError(f"{what} gives what is no JSON: {error}") from error
        assert again == value, f"{what} comes back from JSON as something else: keys are texts, tuples become lists"
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder), trial.job.step, take_snapshot(trial.job))
        other = sorted(file.name for file in path.rglob("*") if file.suffix not in (".safetensors", ".json", ""))
    assert not other, f"a checkpoint has files of other kinds: {some(other)}"
