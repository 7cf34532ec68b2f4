"""The random number generators that a run draws from: python, numpy, torch on the CPU, CUDA and MPS."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from adaptkit.errors import CheckpointError


def seed_everything(seed: int) -> None:
    """Seeds every generator; ``seed`` from 0 to 2**32 - 1."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """Returns the state of every generator of this process, as plain values and tensors."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"] = {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}
    state = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Puts every generator back to where `rng_state` found it.

    Devices that the state knows but this machine does not have are left out, so that a run can go on
    elsewhere; it is then not bit-identical.

    Raises:
        CheckpointError: The state is not one of `rng_state`.
    """
    try:
        random.setstate(state["python"])
        numpy_state = dict(state["numpy"])
        numpy_state["state"] = {**numpy_state["state"], "key": np.array(numpy_state["state"]["key"], dtype=np.uint32)}
        np.random.set_state(numpy_state)
        torch.set_rng_state(state["torch"])
        if torch.cuda.is_available():
            for device, cuda_state in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(cuda_state, device)
        if torch.backends.mps.is_available() and "mps" in state:
            torch.mps.set_rng_state(state["mps"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"the saved state of the random number generators cannot be used: {error}",
            fix="resume with the versions of python, numpy and torch that wrote the checkpoint",
        ) from error


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Leaves every generator as it was, whatever the block draws."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
