"""Copying saved tensors back, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adaptkit.errors import CheckpointError, Problem

if TYPE_CHECKING:
    from torch import Tensor


def copy_state(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Copies `source` into the tensors of `target`, in place and bit for bit.

    Raises:
        CheckpointError: A key is missing or unexpected, or a shape or dtype differs; all of them at once.
    """
    import torch

    problems = [Problem(f"tensor {name!r} is missing") for name in sorted(target.keys() - source.keys())]
    problems += [Problem(f"unexpected tensor {name!r}") for name in sorted(source.keys() - target.keys())]
    for name in sorted(target.keys() & source.keys()):
        wanted, found = target[name], source[name]
        if wanted.shape != found.shape or wanted.dtype != found.dtype:
            problems.append(
                Problem(
                    f"tensor {name!r} is {tuple(found.shape)} {found.dtype}",
                    allowed=f"{tuple(wanted.shape)} {wanted.dtype}",
                )
            )
    if problems:
        advice = Problem(
            "the saved tensors do not belong to this model",
            fix="load them with the strategy, the options and the base model that they were saved with",
        )
        raise CheckpointError([advice, *problems])
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])
