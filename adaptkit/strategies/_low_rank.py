"""What LoRA and QLoRA have in common: PEFT's LoRA layers beside the linear layers of the base."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pydantic import Field

from adaptkit.strategies._peft import ALL_LINEAR, PeftStrategy
from adaptkit.strategy import AdaptContext, StrategyOptions

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn


class LowRankOptions(StrategyOptions):
    """PEFT's fields for LoRA; all linear layers by default ("LoRA Without Regret", Thinking Machines, 2025)."""

    r: int = Field(16, ge=1, description="Rank of the update.")
    lora_alpha: float = Field(32, gt=0, description="The update is scaled by lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the update.")
    target_modules: str | list[str] = Field(
        ALL_LINEAR, description="all-linear, names of layers, or one regular expression over full names."
    )
    use_rslora: bool = Field(False, description="Scale by lora_alpha / sqrt(r) (arXiv:2312.03732).")
    use_dora: bool = Field(False, description="Train the magnitude apart from the direction (arXiv:2402.09353).")


OptionsT = TypeVar("OptionsT", bound=LowRankOptions)


class LowRank(PeftStrategy[OptionsT]):
    """A strategy made of PEFT's LoRA layers."""

    def peft_config(self, model: nn.Module, context: AdaptContext) -> PeftConfig:
        """Returns PEFT's ``LoraConfig``, whose fields the options are."""
        from peft import LoraConfig

        from adaptkit.models.layers import has_transposed_layers

        fields = self.options.model_dump(exclude={"name", "target_modules"})
        targets = self.target_modules(self.options.target_modules, model, context)
        return LoraConfig(target_modules=targets, fan_in_fan_out=has_transposed_layers(model), **fields)
