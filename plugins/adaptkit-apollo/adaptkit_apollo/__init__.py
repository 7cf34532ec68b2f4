"""APOLLO and APOLLO-Mini (Zhu et al. 2024, arXiv:2412.05270): full fine-tuning with a small optimizer state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from adaptkit import AdaptContext, Capabilities, Family, Strategy, StrategyOptions, hookimpl
from adaptkit.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from adaptkit import TrainingSpec
    from adaptkit_apollo.optimizer import AuxiliarySpace


class ApolloOptions(StrategyOptions):
    """The space in which the moments live, and what is made of them."""

    rank: int | None = Field(
        None, ge=1, description="Dimensions of the space; default: a quarter of each matrix's smaller side."
    )
    scaling: Literal["channel", "tensor"] = Field(
        "channel", description="Whether each channel of a matrix has a factor of its own, or the matrix one."
    )
    scale: float | None = Field(
        None,
        gt=0,
        description="On every factor; default: sqrt(smaller side / rank), with which AdamW's learning rates fit. "
        "The authors' code takes the root of its `scale`, here it is the factor itself.",
    )
    interval_steps: int = Field(200, ge=1, description="Optimizer steps until the space is drawn anew.")
    growth_limit: float | None = Field(
        1.01, ge=1, description="How many times as long as the last one a matrix's step may be; null: any."
    )


class ApolloMiniOptions(ApolloOptions):
    """The same, with one dimension and one factor a matrix."""

    rank: int | None = Field(1, ge=1, description="Dimensions of the space.")
    scaling: Literal["channel", "tensor"] = Field(
        "tensor", description="Whether each channel of a matrix has a factor of its own, or the matrix one."
    )


class Apollo(Strategy[ApolloOptions]):
    """Trains everything; the optimizer keeps a small projection of each matrix's moments, and scales its channels."""

    name = "apollo"
    Options = ApolloOptions
    capabilities = Capabilities(quantized_base=False, changes_base=True, mergeable=True, starts_as_base=True)

    _seed: int

    def learning_rate(self, family: Family) -> float:
        """Returns the rate of full fine-tuning with AdamW, whose steps are as long."""
        return 5e-5 if family == "encoder" else 2e-5

    def adapt(self, model: nn.Module, context: AdaptContext) -> nn.Module:
        """Makes all parameters trainable."""
        self._seed = context.seed
        return model.requires_grad_(True)

    def parameter_groups(self, model: nn.Module, lr: float) -> list[dict[str, Any]]:
        """Returns the blocks' matrices; other matrices, which AdamW trains as it is; and what has no weight decay."""
        space = self._space()
        inner = {id(weight) for weight in block_matrices(model) if space.saves(weight)}
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        rest = [p for p in trainable if id(p) not in inner]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trainable if id(p) in inner], "lr": lr, "projected": True},
            {"params": [p for p in rest if p.ndim >= 2], "lr": lr},
            {"params": [p for p in rest if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def make_optimizer(self, groups: list[dict[str, Any]], settings: TrainingSpec) -> Optimizer:
        """Returns APOLLO, with the recipe's weight decay and ``beta2``.

        Raises:
            RecipeError: The recipe names an optimizer.
        """
        from adaptkit_apollo.optimizer import ApolloAdamW

        if settings.optimizer != "adamw":
            raise RecipeError(
                f"training.optimizer is {settings.optimizer}, but the strategy {self.name!r} is an optimizer itself",
                where="training.optimizer",
                allowed="adamw, the default, of which it is a variant",
                fix=f"leave training.optimizer out, or choose full with {settings.optimizer}",
            )
        return ApolloAdamW(groups, self._space(), betas=(0.9, settings.beta2))

    def merge(self, model: nn.Module) -> nn.Module:
        """Returns the model: there is nothing to fold."""
        return model

    def _space(self) -> AuxiliarySpace:
        from adaptkit_apollo.optimizer import AuxiliarySpace

        chosen = self.options
        return AuxiliarySpace(
            rank=chosen.rank,
            scaling=chosen.scaling,
            scale=chosen.scale,
            interval=chosen.interval_steps,
            growth_limit=chosen.growth_limit,
            seed=self._seed,
        )


class ApolloMini(Apollo):
    """Trains everything; the optimizer keeps hardly more than one row of each matrix's moments, and scales it whole."""

    name = "apollo-mini"
    Options = ApolloMiniOptions


def block_matrices(model: nn.Module) -> list[Tensor]:
    """Returns the weights of the linear layers in the blocks; not those of embeddings, heads and poolers."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    stacks = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    return [
        module.weight
        for name, module in model.named_modules()
        if name.startswith(stacks) and isinstance(module, nn.Linear | Conv1D)
    ]


@hookimpl
def adaptkit_register_strategies(register: Callable[[type[Apollo]], None]) -> None:
    """Offers both variants."""
    register(Apollo)
    register(ApolloMini)
