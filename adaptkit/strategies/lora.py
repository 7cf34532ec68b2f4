"""LoRA (arXiv:2106.09685): low-rank updates beside frozen linear layers, by PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from adaptkit.strategies._peft import ALL_LINEAR, PeftStrategy
from adaptkit.strategy import AdaptContext, Capabilities, Family, StrategyOptions

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn


class LoraOptions(StrategyOptions):
    """PEFT's fields for LoRA; all linear layers by default ("LoRA Without Regret", Thinking Machines, 2025)."""

    r: int = Field(16, ge=1, description="Rank of the update.")
    lora_alpha: float = Field(32, gt=0, description="The update is scaled by lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the update.")
    target_modules: str | list[str] = Field(
        ALL_LINEAR, description="all-linear, names of layers, or one regular expression over full names."
    )
    use_rslora: bool = Field(False, description="Scale by lora_alpha / sqrt(r) (arXiv:2312.03732).")
    use_dora: bool = Field(False, description="Train the magnitude apart from the direction (arXiv:2402.09353).")


class Lora(PeftStrategy[LoraOptions]):
    """Trains low-rank updates of the linear layers and the head."""

    name = "lora"
    Options = LoraOptions
    capabilities = Capabilities(mergeable=True, can_disable=True)

    def learning_rate(self, family: Family) -> float:
        """Returns about ten times that of full fine-tuning, more on small encoders ("LoRA Without Regret")."""
        return 1e-3 if family == "encoder" else 2e-4

    def peft_config(self, model: nn.Module, context: AdaptContext) -> PeftConfig:
        """Returns PEFT's ``LoraConfig``."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.options.r,
            lora_alpha=self.options.lora_alpha,
            lora_dropout=self.options.lora_dropout,
            target_modules=self.target_modules(self.options.target_modules, model, context),
            use_rslora=self.options.use_rslora,
            use_dora=self.options.use_dora,
            task_type=context.peft_task_type,
        )
