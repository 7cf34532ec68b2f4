"""Strategies that are broken on purpose, each in one way, for the checks that must notice; and a sound one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from adaptkit import Capabilities, FeaturePoint, Strategy, StrategyOptions
from adaptkit.errors import CheckpointError, ModelError

SOUND = Capabilities(mergeable=True, can_disable=True, starts_as_base=True, families=frozenset({"encoder", "decoder"}))


class Beside(nn.Module):
    """A frozen linear layer and a low-rank update."""

    def __init__(self, base: nn.Linear, r: int) -> None:
        super().__init__()
        self.base, self.on = base, True
        device = base.weight.device
        self.down = nn.Parameter(torch.linspace(-1, 1, base.in_features, device=device).repeat(r, 1) / 10)
        self.up = nn.Parameter(torch.zeros(base.out_features, r, device=device))

    def update(self, x: Tensor) -> Tensor:
        """Returns what is added to the output of the base, in its dtype."""
        return (x.float() @ self.down.T @ self.up.T).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out + self.update(x) if self.on else out


class SoundOptions(StrategyOptions):
    """Its only option."""

    r: int = Field(2, ge=1, description="Rank.")


class Sound(Strategy[SoundOptions]):
    """Keeps the contract: a low-rank update beside the query or the first projection."""

    name = "sound"
    Options = SoundOptions
    capabilities = SOUND
    layer: ClassVar[type[Beside]] = Beside
    targets: ClassVar[tuple[str, ...]] = ("query", "q_proj")

    def adapt(self, model: nn.Module, context: Any) -> nn.Module:
        for name, module in list(model.named_modules()):
            if name.rpartition(".")[2] in self.targets:
                model.set_submodule(name, self.layer(module, self.options.r))
        return model

    def disabled(self, model: nn.Module) -> Any:
        return _switched_off(model)

    def merge(self, model: nn.Module) -> nn.Module:
        for name, layer in layers(model).items():
            with torch.no_grad():
                layer.base.weight += layer.up @ layer.down
            model.set_submodule(name, layer.base)
        return model


@contextlib.contextmanager
def _switched_off(model: nn.Module) -> Iterator[None]:
    for layer in layers(model).values():
        layer.on = False
    yield
    for layer in layers(model).values():
        layer.on = True


def layers(model: nn.Module) -> dict[str, Beside]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Beside)}


def first(model: nn.Module) -> Beside:
    return next(iter(layers(model).values()))


# -- what is seen without a model ----------------------------------------------------------------------


class Shouting(Sound):
    """Its name is no name."""

    name = "Shouting!"


class LooseOptions(SoundOptions):
    """Takes any key."""

    model_config = ConfigDict(extra="allow")


class Loose(Sound):
    """Takes any option."""

    Options = LooseOptions


class ServesNothing(Sound):
    """Refuses every base."""

    def adapt(self, model: nn.Module, context: Any) -> nn.Module:
        raise ModelError("not this one")


# -- structure -----------------------------------------------------------------------------------------


class OnTheCpu(Sound):
    """Makes a parameter on a device of its own."""

    def adapt(self, model: nn.Module, context: Any) -> nn.Module:
        super().adapt(model, context)
        for layer in layers(model).values():
            layer.up = nn.Parameter(torch.zeros(layer.up.shape, device="cpu"))
        return model


class DrawsAnyhow(Sound):
    """Draws other first values each time."""

    capabilities = Capabilities()

    def initialize(self, model: nn.Module, context: Any, batches: Iterable[Mapping[str, Tensor]]) -> None:
        generator = torch.Generator()
        generator.seed()
        for layer in layers(model).values():
            nn.init.normal_(layer.up, generator=generator)


class TrainsNorms(Sound):
    """Trains tensors of the base without saying so."""

    def adapt(self, model: nn.Module, context: Any) -> nn.Module:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("LayerNorm" in name)
        return super().adapt(model, context)


class OfAnotherSize(Sound):
    """Has another rank than its options say."""

    def adapt(self, model: nn.Module, context: Any) -> nn.Module:
        self.options = self.options.model_copy(update={"r": self.options.r + 1})
        return super().adapt(model, context)


# -- training ------------------------------------------------------------------------------------------


class IdleLayer(Beside):
    """Has a parameter whose gradient is always zero."""

    def __init__(self, base: nn.Linear, r: int) -> None:
        super().__init__(base, r)
        self.idle = nn.Parameter(torch.zeros(1, device=base.weight.device))

    def update(self, x: Tensor) -> Tensor:
        return super().update(x) + (0.0 * self.idle).to(x.dtype)


class Idle(Sound):
    """Trains what the loss does not depend on."""

    layer = IdleLayer


class WritesIntoTheBase(Sound):
    """Changes frozen weights at every step."""

    def after_step(self, model: nn.Module, step: int) -> None:
        with torch.no_grad():
            first(model).base.weight.add_(1e-3)


class Climbs(Sound):
    """Follows the gradient upwards."""

    def make_optimizer(self, groups: list[dict[str, Any]], settings: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, maximize=True)


class Dices(Sound):
    """Adds noise of the operating system's."""

    def after_step(self, model: nn.Module, step: int) -> None:
        with torch.no_grad():
            first(model).up.add_(os.urandom(1)[0] * 1e-3 + int.from_bytes(os.urandom(2), "big") * 1e-6)


class KeepsStateInTheClass(Sound):
    """Counts the steps of all runs together."""

    steps = 0

    def after_step(self, model: nn.Module, step: int) -> None:
        if step == 0 and self.options.r and not hasattr(self, "begun"):
            self.begun = type(self).steps
        type(self).steps += 1
        with torch.no_grad():
            first(model).up.add_(1e-3 * (type(self).steps - self.begun))


class HookedLayer(Beside):
    """Adds what a closure holds."""

    def __init__(self, base: nn.Linear, r: int) -> None:
        super().__init__(base, r)
        up = self.up
        self.rule = lambda x: (x.float() @ self.down.T @ up.T).to(x.dtype)

    def update(self, x: Tensor) -> Tensor:
        result: Tensor = self.rule(x)
        return result


class Hooked(Sound):
    """Its layers compute with tensors that a copy of the model does not have."""

    layer = HookedLayer


class CountingLayer(Beside):
    """Counts the forward passes of evaluations in a tensor."""

    def __init__(self, base: nn.Linear, r: int) -> None:
        super().__init__(base, r)
        self.register_buffer("calls", torch.zeros((), device=base.weight.device))

    def update(self, x: Tensor) -> Tensor:
        if not self.training:
            self.calls += 1
        return super().update(x)


class Counting(Sound):
    """An evaluation leaves a trace in it."""

    layer = CountingLayer


class Forgets(Sound):
    """Keeps in mind what it does not hand to a checkpoint."""

    def __init__(self, options: SoundOptions) -> None:
        super().__init__(options)
        self.steps = 0

    def after_step(self, model: nn.Module, step: int) -> None:
        self.steps += 1
        with torch.no_grad():
            first(model).up.add_(1e-3 * self.steps)


class HalfAnOptimizer(Sound):
    """Leaves a group out of the optimizer."""

    def make_optimizer(self, groups: list[dict[str, Any]], settings: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW([{**group, "params": group["params"][1:]} for group in groups])


class VectorLoss(Sound):
    """Its additional loss is no single number."""

    def extra_loss(self, model: nn.Module) -> Tensor:
        return 1e-3 * first(model).up.square().sum(1)


# -- exactness -----------------------------------------------------------------------------------------


class CentredLayer(Beside):
    """Subtracts the mean over the batch."""

    def update(self, x: Tensor) -> Tensor:
        update = super().update(x)
        return update - update.mean((0, 1), keepdim=True)


class Centred(Sound):
    """What it makes of a row depends on the rows beside it."""

    layer = CentredLayer


class RunningLayer(Beside):
    """Adds the running mean of all that stood before in the sequence."""

    def update(self, x: Tensor) -> Tensor:
        update = super().update(x)
        count = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)[:, None]
        return update.cumsum(1) / count


class Running(Sound):
    """Reads over the border of packed rows."""

    layer = RunningLayer


class MoodyLayer(Beside):
    """Computes something else every second time."""

    calls = 0

    def update(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().update(x) * (1.0 + self.calls % 2)


class Moody(Sound):
    """Its recomputed activations are other ones."""

    layer = MoodyLayer


# -- precision -----------------------------------------------------------------------------------------


class Coarse(Sound):
    """Trains in bf16."""

    def initialize(self, model: nn.Module, context: Any, batches: Iterable[Mapping[str, Tensor]]) -> None:
        if context.precision == "bf16":
            for layer in layers(model).values():
                layer.down.data, layer.up.data = layer.down.data.bfloat16(), layer.up.data.bfloat16()


class WeightShapedLayer(Beside):
    """Takes its sizes from a weight that may be packed."""

    def __init__(self, base: nn.Linear, r: int) -> None:
        super().__init__(base, r)
        self.up = nn.Parameter(torch.zeros(base.weight.shape[0], r, device=base.weight.device))


class WeightShaped(Sound):
    """Fails on a base in NF4."""

    layer = WeightShapedLayer


# -- saving --------------------------------------------------------------------------------------------


class LosesTheHead(Sound):
    """Does not save all that it trains."""

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in super().state(model).items() if ".up" in name or ".down" in name}


class TakesLess(Sound):
    """Loads what there is and does not mind the rest."""

    def load_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        super().load_state(model, {**self.state(model), **state})


class TakesMore(Sound):
    """Does not mind what it does not know."""

    def load_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        super().load_state(model, {name: state[name] for name in self.state(model) if name in state})


class TakesOtherShapes(Sound):
    """Passes over what does not fit."""

    def load_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        own = self.state(model)
        if own.keys() != state.keys():
            raise CheckpointError("other names")
        super().load_state(model, {name: t if t.shape == own[name].shape else own[name] for name, t in state.items()})


class UnwritableState(Sound):
    """Remembers what JSON cannot say."""

    def training_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"seen": {1, 2}}


# -- switching and merging -----------------------------------------------------------------------------


class JumpsAtTheStart(Sound):
    """Says that it starts as the base, and does not."""

    def initialize(self, model: nn.Module, context: Any, batches: Iterable[Mapping[str, Tensor]]) -> None:
        for layer in layers(model).values():
            nn.init.ones_(layer.up)


class StaysOn(Sound):
    """Cannot be switched off."""

    def disabled(self, model: nn.Module) -> Any:
        return contextlib.nullcontext()


class SwitchesUnasked(Sound):
    """Can be switched off and does not say so."""

    capabilities = Capabilities(mergeable=True)


class MergesHalf(Sound):
    """Adds half of what it learned."""

    def merge(self, model: nn.Module) -> nn.Module:
        for layer in layers(model).values():
            layer.up.data *= 0.5
        return super().merge(model)


class MergesUnasked(Sound):
    """Can be merged and does not say so."""

    capabilities = Capabilities(can_disable=True)


# -- what is served ------------------------------------------------------------------------------------


class WantsAHead(Sound):
    """Counts on a head that language models do not have."""

    def adapt(self, model: nn.Module, context: Any) -> nn.Module:
        assert context.head_modules[0]
        return super().adapt(model, context)


class PlacedLayer(Beside):
    """Counts places from the first token that it is given, which is another one with a cache."""

    def update(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[:, None]
        return super().update(x) * (1 + 50 * place)


class Placed(Sound):
    """Writes something else with a cache than without."""

    layer = PlacedLayer


class CachesTooMuch(Sound):
    """Takes for frozen what trains."""

    def frozen_features(self, model: nn.Module) -> FeaturePoint:
        return FeaturePoint("classifier")


class ClaimsTokens(Sound):
    """Declares virtual tokens and adds none."""

    capabilities = Capabilities(virtual_tokens=True, packing=False)

    def extra_positions(self) -> int:
        return 3
