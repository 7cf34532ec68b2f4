"""PEFT's methods that put trained tokens, or their keys and values, in front of the text."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from adaptkit.strategies._peft import PeftStrategy
from adaptkit.strategy import AdaptContext, StrategyOptions

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor, nn


class PromptTokens(PeftStrategy[StrategyOptions]):
    """Wraps the model in a `PeftModel`, which lengthens each sequence by ``num_virtual_tokens``."""

    _model_prefix = "base_model."

    def extra_positions(self) -> int:
        """Returns the number of virtual tokens."""
        tokens: int = self.options.num_virtual_tokens  # type: ignore[attr-defined]
        return tokens

    def config_values(self, model: nn.Module, context: AdaptContext) -> dict[str, Any]:
        """Returns the config's values; the base's tokenizer cuts an initial text."""
        values: dict[str, Any] = super().config_values(model, context)  # type: ignore[misc]
        if "prompt_tuning_init" in values:
            values["tokenizer_name_or_path"] = getattr(context.tokenizer, "name_or_path", None)
        if self.capabilities.families != {"decoder"}:
            values["num_transformer_submodules"] = 1  # PEFT's forward puts tokens before the encoder alone
        return values

    def inject(self, model: nn.Module, config: PeftConfig, context: AdaptContext) -> nn.Module:
        """Returns the model in PEFT's wrapper for language models, or in that which leaves the head where it is."""
        from adaptkit.models.peft_adapter import wrap_prompt

        self._adapter: PeftModel = wrap_prompt(model, config, context)
        wrapped: nn.Module = self._adapter
        return wrapped

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns the tokens as PEFT reads them, what they are made from, the head and whatever else trains."""
        own = {name: tensor for name, tensor in super().state(model).items() if not name.startswith("prompt_encoder.")}
        made_from = {
            # PEFT must not take them for its own: with a network before the tokens, names are the same.
            f"adaptkit.{name}": tensor
            for name, tensor in self._adapter.prompt_encoder.state_dict(prefix="prompt_encoder.").items()
        }
        return {**own, **made_from}

    def disabled(self, model: nn.Module) -> AbstractContextManager[None]:
        """Returns a context without the tokens."""
        context: AbstractContextManager[None] = self._adapter.disable_adapter()
        return context
