"""QLoRA (arXiv:2305.14314): LoRA on a base that is stored in 4 bits (NF4, double quantisation)."""

from __future__ import annotations

from pydantic import Field

from adaptkit.recipe import Precision
from adaptkit.strategies._low_rank import LowRank, LowRankOptions
from adaptkit.strategy import Capabilities, Family


class QLoraOptions(LowRankOptions):
    """The defaults of the QLoRA paper: every linear layer, r 64, alpha 16, dropout 0.1."""

    r: int = Field(64, ge=1, description="Rank of the update.")
    lora_alpha: float = Field(16, gt=0, description="The update is scaled by lora_alpha / r.")
    lora_dropout: float = Field(0.1, ge=0, lt=1, description="Dropout on the input of the update (0.05 above 13B).")


class QLora(LowRank[QLoraOptions]):
    """Trains low-rank updates beside 4-bit linear layers, and the head."""

    name = "qlora"
    Options = QLoraOptions
    capabilities = Capabilities(can_disable=True, starts_as_base=True)

    def base_precision(self) -> Precision:
        """Returns NF4."""
        return "nf4"

    def learning_rate(self, family: Family) -> float:
        """Returns the paper's 2e-4 for decoders up to 13B, and 2e-3 for encoders, whose updates are scaled by 1/4."""
        return 2e-3 if family == "encoder" else 2e-4
