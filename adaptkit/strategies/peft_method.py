"""``peft:<method>``: a strategy for every method of the installed PEFT, driven by what is known of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from adaptkit.strategies._peft import PeftStrategy
from adaptkit.strategies._peft_adalora import RankSchedule
from adaptkit.strategies._peft_fields import config_fields, peft_methods
from adaptkit.strategies._peft_methods import METHODS, NEWER, UNAVAILABLE, Kind, Method
from adaptkit.strategies._peft_options import peft_options
from adaptkit.strategies._peft_prompt import PromptTokens
from adaptkit.strategy import AdaptContext, Family, LazyOptions, Strategy, StrategyOptions

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

# Values that no recipe decides: all that a random generator drew is saved, and nothing draws on the screen.
FIXED = {"save_indices": True, "progressbar": False}


class PeftMethod(PeftStrategy[StrategyOptions]):
    """A method of PEFT, its options those of the method's own config.

    Attributes:
        method: PEFT's name, lower case with hyphens.
    """

    method: ClassVar[str]

    def learning_rate(self, family: Family) -> float:
        """Returns the rate that is known to learn with this method."""
        encoder, other = METHODS[self.method].rates
        return encoder if family == "encoder" else other

    def peft_config(self, model: nn.Module, context: AdaptContext) -> PeftConfig:
        """Returns PEFT's config with the options and what the model decides."""
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        method = self.method.replace("-", "_")
        values = self.config_values(model, context)
        config: PeftConfig = PEFT_TYPE_TO_CONFIG_MAPPING[method.upper()](
            **values, **{name: value for name, value in FIXED.items() if name in config_fields(method)}
        )
        return config

    def config_values(self, model: nn.Module, context: AdaptContext) -> dict[str, Any]:
        """Returns the values of PEFT's config, by field."""
        values = self.options.model_dump(exclude={"name"})
        if METHODS[self.method].targets and "target_modules" in values:
            values["target_modules"] = self._targets(model, context)
        if "fan_in_fan_out" in config_fields(self.method.replace("-", "_")):
            from adaptkit.models.layers import has_transposed_layers

            values["fan_in_fan_out"] = has_transposed_layers(model)
        return values

    def _targets(self, model: nn.Module, context: AdaptContext) -> list[str] | str:
        wanted = self.options.target_modules  # type: ignore[attr-defined]
        if wanted == "all-norms":
            from adaptkit.models.layers import norm_layers

            return norm_layers(model, without=context.whole_modules)
        targets = self.target_modules(wanted, model, context)
        if targets is not wanted and getattr(self.options, "layers_to_transform", None) is not None:
            # PEFT takes a full name for granted, whatever its layer is.
            return sorted({name.rpartition(".")[2] for name in targets})
        return targets


class PeftAdaLora(RankSchedule, PeftMethod):
    """AdaLoRA, whose ranks are reallocated after each step."""


class PeftPrompt(PromptTokens, PeftMethod):
    """A method that puts trained tokens, or their keys and values, in front of the text."""


PARENTS: dict[Kind, type[PeftMethod]] = {"layers": PeftMethod, "adalora": PeftAdaLora, "prompt": PeftPrompt}


def peft_strategies() -> list[type[Strategy[Any]]]:
    """Returns a class for every method of the installed PEFT; neither PEFT nor torch is imported."""
    methods = [method.replace("_", "-") for method in peft_methods()]
    return [
        _usable(method, METHODS[method]) if method in METHODS else _unavailable(method, UNAVAILABLE.get(method, NEWER))
        for method in methods
    ]


def _usable(method: str, known: Method) -> type[Strategy[Any]]:
    attributes = {
        "__doc__": known.summary,
        "__module__": __name__,
        "name": f"peft:{method}",
        "method": method,
        "Options": LazyOptions(partial(peft_options, method)),
        "capabilities": known.capabilities,
        "known_failures": known.known_failures,
    }
    return type(_class_name(method), (PARENTS[known.kind],), attributes)


def _unavailable(method: str, reason: str) -> type[Strategy[Any]]:
    attributes = {"__doc__": reason, "__module__": __name__, "name": f"peft:{method}", "unavailable": reason}
    return type(_class_name(method), (PeftMethod,), attributes)


def _class_name(method: str) -> str:
    return "Peft" + "".join(part.capitalize() for part in method.split("-"))
