"""LoRA (arXiv:2106.09685): low-rank updates beside frozen linear layers, by PEFT."""

from __future__ import annotations

from adaptkit.strategies._low_rank import LowRank, LowRankOptions
from adaptkit.strategy import Capabilities, Family


class LoraOptions(LowRankOptions):
    """The fields and defaults of `LowRankOptions`."""


class Lora(LowRank[LoraOptions]):
    """Trains low-rank updates of the linear layers and the head."""

    name = "lora"
    Options = LoraOptions
    capabilities = Capabilities(mergeable=True, can_disable=True, starts_as_base=True)

    def learning_rate(self, family: Family) -> float:
        """Returns about ten times that of full fine-tuning, more on small encoders ("LoRA Without Regret")."""
        return 1e-3 if family == "encoder" else 2e-4
