"""Fine-tuning of the top of the model: its last blocks, what follows them, and the head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from adaptkit.errors import RecipeError
from adaptkit.strategy import AdaptContext, Capabilities, Family, Strategy, StrategyOptions

if TYPE_CHECKING:
    from torch import nn


class LastLayersOptions(StrategyOptions):
    """Which part trains."""

    num_layers: int = Field(2, ge=1, description="Blocks that train, counted from the top of each stack.")
    embeddings: bool = Field(False, description="Whether all that comes before the blocks trains too.")


class LastLayers(Strategy[LastLayersOptions]):
    """Trains the last blocks, the norms and poolers that follow them, and the head."""

    name = "last-layers"
    Options = LastLayersOptions
    capabilities = Capabilities(quantized_base=False, changes_base=True, mergeable=True, starts_as_base=True)

    def learning_rate(self, family: Family) -> float:
        """Returns twice the rate of full fine-tuning: fewer parameters move, and they are the last to."""
        return 1e-4 if family == "encoder" else 4e-5

    def adapt(self, model: nn.Module, context: AdaptContext) -> nn.Module:
        """Makes the last blocks, all parameters registered after them, and the head trainable."""
        from adaptkit.models.layers import block_stacks

        stacks = block_stacks(model)
        for name, blocks in stacks:
            if self.options.num_layers > len(blocks):
                raise RecipeError(
                    f"strategy.num_layers is {self.options.num_layers}, but {name!r} has {len(blocks)} blocks",
                    where="strategy.num_layers",
                    allowed=f"1 to {len(blocks)}",
                    fix="lower strategy.num_layers, or choose `full`",
                )
            blocks[-self.options.num_layers :].requires_grad_(True)
        in_stack = tuple(name + "." for name, _ in stacks)
        before = True
        for name, parameter in model.named_parameters():
            if name.startswith(in_stack):
                before = False
            else:  # The embeddings of a decoder stand behind the encoder's blocks, and are embeddings all the same.
                parameter.requires_grad_(self.options.embeddings if before or "embed" in name else True)
        for name in context.head_modules:
            model.get_submodule(name).requires_grad_(True)
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """Returns the model: there is nothing to fold."""
        return model
