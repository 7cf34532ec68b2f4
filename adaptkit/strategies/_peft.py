"""What the strategies that PEFT implements have in common: inject, save under PEFT's names, switch off, merge."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from adaptkit.errors import ModelError
from adaptkit.strategy import JSON, AdaptContext, Strategy, StrategyOptions

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn

OptionsT = TypeVar("OptionsT", bound=StrategyOptions)
ALL_LINEAR = "all-linear"
PEFT_PREFIX = "base_model.model."


class PeftStrategy(Strategy[OptionsT]):
    """A strategy whose layers PEFT injects into the model; the model itself stays unwrapped."""

    @abstractmethod
    def peft_config(self, model: nn.Module, context: AdaptContext) -> PeftConfig:
        """Returns PEFT's config for this model."""

    def adapt(self, model: nn.Module, context: AdaptContext) -> nn.Module:
        """Injects PEFT's layers; only they train.

        Raises:
            ModelError: ``target_modules`` matches no layer, or PEFT has no implementation for one.
        """
        from peft import inject_adapter_in_model

        self._config = self.peft_config(model, context)
        try:
            adapted: nn.Module = inject_adapter_in_model(self._config, model)
        except ValueError as error:
            raise _unmatched(self.name, model, context, error) from error
        # Only now: PEFT would copy the modules that it is told to save; here the framework trains the head in place.
        self._config.modules_to_save = list(context.head_modules) or None
        return adapted

    def target_modules(self, wanted: str | list[str], model: nn.Module, context: AdaptContext) -> list[str] | str:
        """Returns PEFT's ``target_modules``; ``all-linear`` becomes every linear layer outside the head."""
        from adaptkit.models.layers import linear_layers

        return linear_layers(model, without=context.head_modules) if wanted == ALL_LINEAR else wanted

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns PEFT's tensors and the head's, under the names by which `PeftModel` loads them."""
        from peft import get_peft_model_state_dict

        adapter = get_peft_model_state_dict(model, save_embedding_layers=False)
        tensors = {PEFT_PREFIX + name: tensor for name, tensor in adapter.items()}
        for module in self._config.modules_to_save or ():
            for name, parameter in model.get_submodule(module).named_parameters(prefix=module):
                tensors[PEFT_PREFIX + name] = parameter.detach()
        return tensors

    def adapter_files(self, model: nn.Module) -> dict[str, JSON]:
        """Returns PEFT's ``adapter_config.json``."""
        config = self._config.to_dict()
        config["inference_mode"] = True
        return {"adapter_config.json": {name: _as_json(value) for name, value in config.items()}}

    @contextmanager
    def disabled(self, model: nn.Module) -> Iterator[None]:
        """Switches the adapter off within the context; the head stays as trained."""
        layers = _tuner_layers(model)
        for _, layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for _, layer in layers:
                layer.enable_adapters(True)

    def merge(self, model: nn.Module) -> nn.Module:
        """Adds the adapter's weights to the base's and takes PEFT's layers out again."""
        for name, layer in _tuner_layers(model):
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
        return model


def _tuner_layers(model: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def _as_json(value: Any) -> JSON:
    """Returns sets as sorted lists and enums by value, as PEFT writes them."""
    return sorted(value) if isinstance(value, set) else getattr(value, "value", value)


def _unmatched(strategy: str, model: nn.Module, context: AdaptContext, error: ValueError) -> ModelError:
    from adaptkit.models.layers import linear_layers

    names = sorted({name.rpartition(".")[2] for name in linear_layers(model, without=context.head_modules)})
    return ModelError(
        f"{strategy} cannot be applied: {str(error).splitlines()[0]}",
        where="strategy.target_modules",
        allowed=f"all-linear, or names of layers of this model: {', '.join(names)}",
        fix="leave strategy.target_modules out to adapt all linear layers",
    )
