"""What `adapt` makes of a model."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from adaptkit.models.adaptation import adapt_model
from adaptkit.testing.bases import BASES
from adaptkit.testing.check import NotApplicable, check, lacks
from adaptkit.testing.subject import Subject
from adaptkit.testing.trial import differing, some


@check(once=True)
def check_some_base(subject: Subject) -> None:
    """At least one of the tiny bases is served."""
    refusals = []
    for base in BASES:
        try:
            replace(subject, base_name=base).trial()
        except NotApplicable as reason:
            refusals.append(f"{base}: {reason}")
    assert len(refusals) < len(BASES), "it serves none of the bases, so that nothing is checked: " + "; ".join(refusals)


@check()
def check_meta_device(subject: Subject) -> None:
    """On the meta device, where a plan is made, `adapt` adds the same tensors, and the same ones train."""
    trial = subject.trial(initialize=False)
    whole = replace(trial.adapted.numerics, precision="fp32")
    base = trial.task.load_base(trial.prepared.source, whole, trial.recipe.training.seed)
    model = adapt_model(subject.make(), replace(base, module=_on_meta(base.module)), trial.adapted.context)
    made, wanted = _trainable(model), _trainable(trial.model)
    other = sorted(name for name in made.keys() | wanted.keys() if made.get(name, ()) != wanted.get(name, ()))
    assert not other, f"on the meta device these are other than on a real one: {some(other)}"
    real = sorted(name for name, parameter in model.named_parameters() if parameter.device.type != "meta")
    assert not real, f"made on a real device beside layers on the meta device: {some(real)}; pass device=…"


def _trainable(model: nn.Module) -> dict[str, torch.Size | None]:
    """Returns the shape of every parameter that trains; of a frozen one, which may be packed, the name alone."""
    return {name: p.shape if p.requires_grad else None for name, p in model.named_parameters()}


def _on_meta(module: nn.Module) -> nn.Module:
    """Returns a copy without values, in which what was tied is tied."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): _without_values(tensor) for tensor in tensors})


def _without_values(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


@check()
def check_first_values(subject: Subject) -> None:
    """First values are a function of the run's seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = subject.trial().tensors()
        torch.manual_seed(2)
        other = subject.trial().tensors()
    drawn = differing(one, other)
    assert not drawn, f"these begin with other values in a second run of the recipe: {some(drawn)}; use context.seed"


@check(lacks("changes_base"))
def check_base_is_frozen(subject: Subject) -> None:
    """No tensor of the base trains, unless changes_base is declared."""
    trial = subject.trial()
    own = set(trial.adapted.context.new_parameters)
    trains = sorted(name for name, (t, _) in trial.base_tensors.items() if t.requires_grad and name not in own)
    assert not trains, f"these train and are the base's own: {some(trains)}; declare Capabilities(changes_base=True)"


@check()
def check_trainable_parameters(subject: Subject) -> None:
    """As many parameters train as the closed form says."""
    if subject.trainable_parameters is None:
        raise NotApplicable("no closed form is given")
    trial = subject.trial()
    wanted = subject.trainable_parameters(trial.plain_base(), trial.adapted.context)
    found = trial.adapted.trainable_parameters
    assert found == wanted, f"{found:,} parameters train, the closed form says {wanted:,}"
