"""LoRA+ (Hayou et al. 2024, arXiv:2402.12354): LoRA whose matrix B learns faster than its matrix A."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from adaptkit import AdaptContext, Capabilities, Family, PeftStrategy, StrategyOptions, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

    from peft import PeftConfig
    from torch import nn


class LoraPlusOptions(StrategyOptions):
    """PEFT's fields for LoRA, and the ratio of the two learning rates."""

    lr_ratio: float = Field(16, ge=1, description="Learning rate of B over that of A; 1: plain LoRA.")
    r: int = Field(16, ge=1, description="Rank of the update.")
    lora_alpha: float = Field(32, gt=0, description="The update is scaled by lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the update.")
    target_modules: str | list[str] = Field(
        "all-linear", description="all-linear, names of layers, or one regular expression over full names."
    )
    use_rslora: bool = Field(False, description="Scale by lora_alpha / sqrt(r) (arXiv:2312.03732).")


class LoraPlus(PeftStrategy[LoraPlusOptions]):
    """Trains low-rank updates of the linear layers, B faster than A, and the head."""

    name = "lora-plus"
    Options = LoraPlusOptions
    capabilities = Capabilities(mergeable=True, can_disable=True, starts_as_base=True)

    def learning_rate(self, family: Family) -> float:
        """Returns the rate of A and the head: a quarter of what `lora` takes, so that B's is four times that."""
        return 2.5e-4 if family == "encoder" else 5e-5

    def peft_config(self, model: nn.Module, context: AdaptContext) -> PeftConfig:
        """Returns PEFT's ``LoraConfig``, whose fields all options but the ratio are."""
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        fields = self.options.model_dump(exclude={"name", "target_modules", "lr_ratio"})
        targets = self.target_modules(self.options.target_modules, model, context)
        transposed = any(isinstance(module, Conv1D) for module in model.modules())  # GPT-2
        return LoraConfig(target_modules=targets, fan_in_fan_out=transposed, **fields)

    def parameter_groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        """Returns the matrices B at ``lr_ratio`` times the rate of all that trains besides them."""
        trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        up = [p for name, p in trainable if ".lora_B." in name]
        others = [p for name, p in trainable if ".lora_B." not in name]
        groups: list[dict[str, Any]] = [
            {"params": up, "lr": lr * self.options.lr_ratio},
            {"params": [p for p in others if p.ndim >= 2], "lr": lr},
            {"params": [p for p in others if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]


@hookimpl
def adaptkit_register_strategies(register: Callable[[type[LoraPlus]], None]) -> None:
    """Offers LoRA+."""
    register(LoraPlus)
