"""A run before its first step, and what checks ask of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.hookspecs import StepRecord
from adaptkit.models.building import AdaptedModel, build_model
from adaptkit.recipe import Recipe
from adaptkit.registry import Registry
from adaptkit.runner import check, resolve
from adaptkit.strategy import Strategy
from adaptkit.task import Task
from adaptkit.training.batches import TrainingBatches
from adaptkit.training.evaluation import Evaluation, eval_mode, inference, ordered_batches
from adaptkit.training.gradient import accumulate_gradient
from adaptkit.training.job import Job
from adaptkit.training.loop import train_step
from adaptkit.training.preparation import Preparation, prepare
from adaptkit.training.rng import preserved_rng
from adaptkit.training.setup import make_job

ALL_TOKENS = 10**6  # of one micro-batch
NOISE = 0.005


@dataclass
class Trial:
    """A run before its first step.

    Attributes:
        recipe: Of the run.
        registry: Of all that is installed.
        strategy: Of the run.
        task: Has been prepared.
        prepared: Source and features.
        adapted: The model.
        job: What steps.
        base_tensors: Of the base with its head, as they were before the strategy adapted it: name to the tensor itself
            and a copy of it.
        base_module: What the strategy was given to adapt.
    """

    recipe: Recipe
    registry: Registry
    strategy: Strategy[Any]
    task: Task[Any]
    prepared: Preparation
    adapted: AdaptedModel
    job: Job
    base_tensors: Mapping[str, tuple[Tensor, Tensor]]
    base_module: nn.Module

    @property
    def model(self) -> nn.Module:
        """What the strategy returned."""
        return self.adapted.model

    def step(self, steps: int = 1) -> list[StepRecord]:
        """Trains."""
        return [train_step(self.job) for _ in range(steps)]

    def evaluate(self) -> dict[str, float]:
        """Returns the task's figures over the evaluation rows."""
        tokens = self.recipe.training.pass_tokens
        features, tokenizer = self.prepared.evaluation, self.adapted.base.tokenizer
        return Evaluation(self.job.wrapped, self.task, features, tokenizer, self.adapted.numerics, tokens).figures()

    def logits(self, model: nn.Module | None = None) -> Tensor:
        """Returns what a model gives for the evaluation rows, float32.

        Args:
            model: Default: the adapted one.
        """
        model = self.model if model is None else model
        features, tokenizer = self.prepared.evaluation, self.adapted.base.tokenizer
        with inference(model, self.adapted.numerics), captured(model) as outputs:
            self.task.loss_chunk_tokens = None
            for _, batch in ordered_batches(self.task, features, tokenizer, self.adapted.numerics, ALL_TOKENS):
                self.task.loss(model, batch)
        self.task.loss_chunk_tokens = self.recipe.training.loss_chunk_tokens
        return torch.cat([output.float().flatten() for output in outputs])

    def plain_base(self) -> nn.Module:
        """Returns the base with the task's head, unadapted, and what was new in it as it is now."""
        base = self.task.load_base(self.prepared.source, self.adapted.numerics, self.recipe.training.seed)
        with torch.no_grad():
            for name in self.adapted.context.new_parameters:
                base.module.get_parameter(name).copy_(self.base_module.get_parameter(name))
        return base.module.to(self.adapted.numerics.device)

    def move_away(self, seed: int = 1) -> Trial:
        """Moves all that trains by noise, as a longer training would, and returns the trial."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.job.trainable().values():
                parameter.add_((NOISE * torch.randn(parameter.shape, generator=generator)).to(parameter.device))
        return self

    def without_dropout(self) -> Trial:
        """Switches every dropout module off, and returns the trial."""
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return self

    def batches(self, tokens: int, *, packing: bool = False) -> list[dict[str, Tensor]]:
        """Returns the micro-batches of the first step, cut by tokens."""
        settings = self.recipe.training.model_copy(update={"micro_batch_tokens": tokens})
        pack_to = self.adapted.max_length if packing else None
        tokenizer = self.adapted.base.tokenizer
        return TrainingBatches(self.prepared.train, self.task, tokenizer, settings, pack_to=pack_to).at(0)

    def gradient(self, micro_batches: list[dict[str, Tensor]]) -> Tensor:
        """Returns the gradient of all that trains, float64 ``(parameters,)``, as the loop computes it."""
        self.model.zero_grad()
        accumulate_gradient(self.job, micro_batches, sum(self.task.count(batch) for batch in micro_batches))
        gradients = [p.grad.flatten().double() for p in self.job.trainable().values() if p.grad is not None]
        self.model.zero_grad()
        return torch.cat(gradients)

    def tensors(self) -> dict[str, Tensor]:
        """Returns a copy of every tensor of the model: parameters, buffers, and what belongs to packed weights."""
        return {name: tensor.detach().clone() for name, tensor in named_tensors(self.model)}


def make_trial(recipe: Recipe, strategy: Strategy[Any], registry: Registry, *, initialize: bool = True) -> Trial:
    """Goes through all that a run does before its first step.

    Args:
        recipe: Of the run.
        strategy: In place of the one that the recipe would make.
        registry: Of all that is installed.
        initialize: Whether the strategy gives its adapter first values.

    Raises:
        AdaptkitError: As the run would.
    """
    recipe = resolve(recipe, (), registry)
    task = registry.make_task(recipe.task)
    splits = check(recipe, strategy, task, registry)
    prepared = prepare(recipe, strategy, task, splits)
    given: list[tuple[nn.Module, dict[str, tuple[Tensor, Tensor]]]] = []
    with _watched(strategy, given):
        adapted = build_model(recipe, strategy, task, prepared.source, total_steps=recipe.training.max_steps or 0)
    job = make_job(
        adapted, strategy, task, recipe.training, prepared.train, registry.optimizer(recipe.training.optimizer)
    )
    if initialize:
        with eval_mode(job.model), preserved_rng():
            strategy.initialize(job.model, adapted.context, iter(job.batches.at(0)))
    base_module, base_tensors = given[0]
    return Trial(recipe, registry, strategy, task, prepared, adapted, job, base_tensors, base_module)


@contextmanager
def _watched(strategy: Any, given: list[tuple[nn.Module, dict[str, tuple[Tensor, Tensor]]]]) -> Iterator[None]:
    """Takes down what a strategy is given to adapt."""
    adapt = strategy.adapt

    def watched(model: nn.Module, context: Any) -> nn.Module:
        given.append((model, {name: (tensor, tensor.detach().clone()) for name, tensor in named_tensors(model)}))
        adapted: nn.Module = adapt(model, context)
        return adapted

    strategy.adapt = watched
    try:
        yield
    finally:
        del strategy.adapt


@contextmanager
def captured(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the logits of a model, one tensor a forward pass."""
    outputs: list[Tensor] = []

    def take(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(getattr(output, "logits", output))

    handle = model.register_forward_hook(take)
    try:
        yield outputs
    finally:
        handle.remove()


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields every parameter and buffer of a model, and what bitsandbytes keeps beside packed weights."""
    yield from model.named_buffers()
    for name, parameter in model.named_parameters():
        yield name, parameter
        if (state := getattr(parameter, "quant_state", None)) is not None:
            packed = state.as_dict(packed=False)
            yield from ((f"{name}/{key}", value) for key, value in packed.items() if isinstance(value, Tensor))


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Returns the names of tensors that one side lacks or that are not the same bits."""
    return sorted(
        name
        for name in one.keys() | other.keys()
        if name not in one or name not in other or not torch.equal(one[name], other[name])
    )


def some(names: list[str]) -> str:
    """Returns names for a message."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
