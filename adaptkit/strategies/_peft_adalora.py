"""AdaLoRA's rank schedule: scores from the gradients, fewer ranks from step to step, an orthogonality loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from adaptkit.strategies._peft import PeftStrategy
from adaptkit.strategy import JSON, AdaptContext, StrategyOptions

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn

SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class RankSchedule(PeftStrategy[StrategyOptions]):
    """What AdaLoRA (arXiv:2303.10512) does beyond its layers.

    Ranks that are given up are masked, not cut out, as PEFT does in training. So all tensors keep their shapes, and
    a saved adapter is rebuilt without the schedule.
    """

    _pattern: dict[str, list[bool]] | None = None

    def config_values(self, model: nn.Module, context: AdaptContext) -> dict[str, Any]:
        """Returns the config's values with the schedule of this run; when a model is rebuilt, any will do."""
        values: dict[str, Any] = super().config_values(model, context)  # type: ignore[misc]
        steps = context.total_steps
        if not steps:
            return {**values, "tinit": 0, "tfinal": 0, "total_step": 1}
        values["tinit"] = steps // 10 if values["tinit"] is None else values["tinit"]
        values["tfinal"] = steps // 5 if values["tfinal"] is None else values["tfinal"]
        return {**values, "total_step": steps}

    def inject(self, model: nn.Module, config: PeftConfig, context: AdaptContext) -> nn.Module:
        """Puts the layers in, their counts of ranks frozen, which on a bf16 base PEFT would let train."""
        adapted = super().inject(model, config, context)
        for name, parameter in self._adapter.named_parameters():
            if ".ranknum." in name:
                parameter.requires_grad_(False)
        return adapted

    def extra_loss(self, model: nn.Module) -> Tensor | None:
        """Returns the distance of both sides of the updates from orthogonality (equation 4 of the paper)."""
        import torch

        distances = []
        for name, side in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                gram = side @ side.T if "lora_A" in name else side.T @ side
                distances.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)))
        weight: float = self.options.orth_reg_weight  # type: ignore[attr-defined]
        return weight * torch.stack(distances).sum() / len(distances)

    def after_step(self, model: nn.Module, step: int) -> None:
        """Scores every rank by its gradient, and masks the least important ones."""
        config = self._config
        # Outside of this call the config has no pattern: PEFT would cut saved tensors to it.
        config.rank_pattern = self._pattern
        self._tuner.update_and_allocate(step)
        self._pattern, config.rank_pattern = config.rank_pattern, None

    def training_state(self) -> tuple[dict[str, Tensor], dict[str, JSON]]:
        """Returns the scores, and which ranks are in use."""
        allocator = self._tuner.rankallocator
        scores = {f"{kind}/{name}": score for kind in SCORES for name, score in getattr(allocator, kind).items()}
        return scores, {"rank_pattern": self._pattern}

    def load_training_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, JSON]) -> None:
        """Takes scores and ranks back."""
        device = next(self._tuner.parameters()).device
        for key, score in tensors.items():
            kind, _, name = key.partition("/")
            getattr(self._tuner.rankallocator, kind)[name] = score.to(device)
        self._pattern = values["rank_pattern"]

    @property
    def _tuner(self) -> Any:
        return self._adapter.base_model

    @property
    def _config(self) -> Any:
        return self._adapter.peft_config["default"]
