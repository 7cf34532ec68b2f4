"""What the strategies that PEFT implements have in common: inject, save under PEFT's names, switch off, merge."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from adaptkit.errors import ModelError, RecipeError
from adaptkit.strategy import JSON, AdaptContext, Strategy, StrategyOptions

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor, nn

    from adaptkit.models.peft_adapter import LayerAdapter

OptionsT = TypeVar("OptionsT", bound=StrategyOptions)
ALL_LINEAR = "all-linear"


class PeftStrategy(Strategy[OptionsT]):
    """A strategy whose layers PEFT injects into the model; the model itself stays unwrapped."""

    _adapter: LayerAdapter | PeftModel
    _model_prefix: ClassVar[str] = "base_model.model."  # of the model's own tensors in the files of PEFT

    @abstractmethod
    def peft_config(self, model: nn.Module, context: AdaptContext) -> PeftConfig:
        """Returns PEFT's config for this model; a `ValueError` says what is wrong with the options."""

    def adapt(self, model: nn.Module, context: AdaptContext) -> nn.Module:
        """Injects PEFT's layers; only they train.

        Raises:
            RecipeError: PEFT refuses the options.
            ModelError: They do not fit the model: ``target_modules`` matches no layer, or one that PEFT cannot adapt.
        """
        try:
            config = self.peft_config(model, context)
        except (ValueError, TypeError) as error:
            raise self._refused(error) from error
        try:
            adapted = self.inject(model, config, context)
        except (ValueError, TypeError, ArithmeticError, NotImplementedError, OSError) as error:
            raise self._unfit(error, model, context) from error
        if not any(parameter.requires_grad for parameter in adapted.parameters()):
            # Some methods pass over layers that they do not know; the head alone would train.
            raise self._unfit(ValueError("it has no layer that the method knows"), model, context)
        self._head = context.head_modules
        # Only now: PEFT would copy the modules that it is told to save; here the framework trains the head in place.
        config.modules_to_save = list(context.head_modules) or None
        config.task_type = context.peft_task_type
        return adapted

    def inject(self, model: nn.Module, config: PeftConfig, context: AdaptContext) -> nn.Module:
        """Puts PEFT's layers in and returns what is to be called; LoRA on plain linear layers computes in one step."""
        from adaptkit.models.efficiency.fused_lora import fuse_lora
        from adaptkit.models.peft_adapter import LayerAdapter

        self._adapter = LayerAdapter(model, config)
        fuse_lora(model)
        return model

    def target_modules(self, wanted: str | list[str], model: nn.Module, context: AdaptContext) -> list[str] | str:
        """Returns PEFT's ``target_modules``; ``all-linear`` becomes every linear layer outside the head."""
        from adaptkit.models.layers import linear_layers

        return linear_layers(model, without=context.whole_modules) if wanted == ALL_LINEAR else wanted

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns PEFT's tensors, the head's and whatever else trains, under the names by which `PeftModel` loads."""
        from adaptkit.models.peft_adapter import peft_state

        head = tuple(f"{name}." for name in self._head)
        others = {
            name: parameter
            for name, parameter in self._adapter.named_parameters()
            if parameter.requires_grad or name.removeprefix(self._model_prefix).startswith(head)
        }
        return peft_state(self._adapter, others)

    def adapter_files(self, model: nn.Module) -> dict[str, JSON]:
        """Returns PEFT's ``adapter_config.json``."""
        config = self._adapter.peft_config["default"].to_dict()
        config["inference_mode"] = True
        return {"adapter_config.json": {name: _as_json(value) for name, value in config.items()}}

    def disabled(self, model: nn.Module) -> AbstractContextManager[None]:
        """Returns a context without the adapter; the head stays as trained."""
        if not self.capabilities.can_disable:
            return super().disabled(model)
        from adaptkit.models.peft_adapter import disabled_layers

        return disabled_layers(model)

    def merge(self, model: nn.Module) -> nn.Module:
        """Adds the adapter's weights to the base's and takes PEFT's layers out again."""
        if not self.capabilities.mergeable:
            return super().merge(model)
        from adaptkit.models.peft_adapter import merge_layers

        return merge_layers(model)

    def _refused(self, error: Exception) -> RecipeError:
        """Returns what PEFT has against the options, with the names of those that it speaks of."""
        message = " ".join(str(error).split())
        named = [f"strategy.{name}" for name in type(self.options).model_fields if name != "name" and name in message]
        return RecipeError(
            f"PEFT does not accept the options of {self.name}: {message}",
            where=", ".join(named) or "strategy",
            fix=f"`adaptkit strategies {self.name}` shows the options and their defaults",
        )

    def _unfit(self, error: Exception, model: nn.Module, context: AdaptContext) -> ModelError:
        from adaptkit.models.layers import linear_layers

        message = " ".join(str(error).split())
        if getattr(self.options, "target_modules", ALL_LINEAR) == ALL_LINEAR:
            found = f"{self.name} cannot be applied to {type(model).__name__}: {message}"
            other = "full" if self.name == "lora" else "lora"
            return ModelError(
                found, where="strategy", fix=f"change its options if they are the reason, or choose {other}"
            )
        names = sorted({name.rpartition(".")[2] for name in linear_layers(model, without=context.head_modules)})
        return ModelError(
            f"{self.name} cannot be applied: {message}",
            where="strategy.target_modules",
            allowed=f"all-linear, or names of layers of this model: {', '.join(names)}",
            fix="leave strategy.target_modules out",
        )


def _as_json(value: Any) -> JSON:
    """Returns sets as sorted lists and enums by value, as PEFT writes them, in values of any depth."""
    if isinstance(value, dict):
        return {key: _as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(part) for part in value]
    return sorted(value) if isinstance(value, set) else getattr(value, "value", value)
