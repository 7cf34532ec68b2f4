"""The head that a run has trained, kept beside its plain model for a next run of the same task and labels.

A plain model is what transformers reads, and has no head: the next task has one of its own. Where it is the same task
(a probe, then LoRA: Kumar et al. 2022, arXiv:2202.10054), the head goes along in a file of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adaptkit.errors import CheckpointError, ModelError, Problem

if TYPE_CHECKING:
    from adaptkit.task import BaseModel

HEAD = "head.safetensors"
_KIND = "head"
_ANEW = "remove the folder of the plain model: it is made anew from the run"


def write_head(base: BaseModel, merged: nn.Module, folder: Path) -> None:
    """Writes the head of a merged model beside the plain model; nothing where the task made none.

    Args:
        base: Says which modules are the head.
        merged: Has them, under the same names.
        folder: Of the plain model.
    """
    tensors = {name: tensor.contiguous().cpu().clone() for name, tensor in _tensors(base, merged).items()}
    if tensors:
        save_file(tensors, folder / HEAD, metadata={"format": "pt", _KIND: _kind(base)})


def fill_head(base: BaseModel, folder: Path) -> None:
    """Gives a base's new head the values that `write_head` wrote, in their own precision; nothing without a head.

    Raises:
        ModelError: There is no such file, or it is of another kind of head.
        CheckpointError: It is damaged, or has other tensors than the head.
    """
    if not base.head_modules:
        return
    kind, tensors = _read(folder / HEAD)
    if kind != _kind(base):
        raise ModelError(
            f"the head that is to be kept is one of {kind}, and the recipe makes one of {_kind(base)}",
            where=str(folder / HEAD),
            fix="give task.pooling the value that the run before had, or set model.head to new",
        )
    _check(_tensors(base, base.module), tensors, folder / HEAD)
    for name in base.head_modules:
        start = f"{name}."
        values = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
        base.module.get_submodule(name).load_state_dict(values, assign=True)


def _tensors(base: BaseModel, module: nn.Module) -> dict[str, Tensor]:
    parts = {name: module.get_submodule(name).state_dict() for name in base.head_modules}
    return {f"{name}.{key}": tensor for name, state in parts.items() for key, tensor in state.items()}


def _kind(base: BaseModel) -> str:
    """Returns what tells heads apart that have tensors of the same names: the model's class, and how it pools."""
    pooling = getattr(base.module, "pooling", None)
    return " ".join([type(base.module).__name__, *([f"({pooling})"] if isinstance(pooling, str) else [])])


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    if not path.is_file():
        raise ModelError(
            "the run has no head to keep",
            where=str(path),
            fix=f"remove the folder {str(path.parent)!r}, which is then made anew, or set model.head to new",
        )
    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get(_KIND)), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"the head is damaged: {error}", where=str(path), fix=_ANEW) from error


def _check(wanted: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    """Raises when a tensor is missing or too many, or is not what the head can hold; all of them at once."""
    where = str(path)
    problems = [Problem(f"tensor {name!r} is missing", where) for name in sorted(wanted.keys() - found.keys())]
    problems += [Problem(f"unexpected tensor {name!r}", where) for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        needed, tensor = wanted[name], found[name]
        if tensor.shape != needed.shape or tensor.is_floating_point() != needed.is_floating_point():
            shown = f"tensor {name!r} is {tuple(tensor.shape)} {tensor.dtype}"
            problems.append(Problem(shown, where, f"{tuple(needed.shape)} {needed.dtype}"))
        elif not torch.isfinite(tensor).all():
            problems.append(Problem(f"tensor {name!r} has values that are no numbers", where))
    if problems:
        raise CheckpointError([Problem("the head does not belong to this model", where, fix=_ANEW), *problems])
