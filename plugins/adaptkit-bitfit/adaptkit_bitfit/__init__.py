"""BitFit (Ben Zaken et al. 2022, arXiv:2106.10199): the biases of the base train, and the head."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from adaptkit import AdaptContext, Capabilities, Family, Strategy, StrategyOptions, hookimpl
from adaptkit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

# Layers that make queries; of those that make keys and values too (c_attn, qkv …) the bias is one tensor.
QUERY = "query|q|q_lin|q_proj|query_proj|q_attn|c_attn|qkv|qkv_proj|query_key_value|Wqkv|in_proj"
# The layers of a block's MLP that widen.
MIDDLE = r"intermediate\.dense|lin1|fc1|fc_in|c_fc|dense_h_to_4h|up_proj|gate_proj|ffn|wi|wi_0|wi_1|Wi"
QUERY_AND_MIDDLE = re.compile(rf"(^|\.)(({QUERY}|{MIDDLE})\.bias|q_bias)$")


class BitFitOptions(StrategyOptions):
    """Which biases train."""

    biases: Literal["all", "query-and-middle"] = Field(
        "all", description="All, or those of the queries and of the middle of each MLP, about half of them."
    )


class BitFit(Strategy[BitFitOptions]):
    """Trains the biases of the base and the head."""

    name = "bitfit"
    Options = BitFitOptions
    # Biases are not quantised, but bitsandbytes' layers cast theirs in place to the dtype of the input.
    capabilities = Capabilities(quantized_base=False, changes_base=True, mergeable=True, starts_as_base=True)

    def learning_rate(self, family: Family) -> float:
        """Returns twenty times the rate of full fine-tuning: biases are few, and each has far to go."""
        return 1e-3 if family == "encoder" else 4e-4

    def adapt(self, model: nn.Module, context: AdaptContext) -> nn.Module:
        """Makes the chosen biases and the head trainable.

        Raises:
            ModelError: The base has no such biases; only its head would train.
        """
        head = tuple(f"{name}." for name in context.head_modules)
        biases = [p for name, p in model.named_parameters() if self._chosen(name) and not name.startswith(head)]
        if not biases:
            raise self._without_biases(model)
        for parameter in biases:
            parameter.requires_grad_(True)
        for name in context.head_modules:
            model.get_submodule(name).requires_grad_(True)
        return model

    def merge(self, model: nn.Module) -> nn.Module:
        """Returns the model: there is nothing to fold."""
        return model

    def _chosen(self, name: str) -> bool:
        if self.options.biases == "all":
            return name.endswith("bias")
        return QUERY_AND_MIDDLE.search(name) is not None

    def _without_biases(self, model: nn.Module) -> ModelError:
        subset = self.options.biases != "all"
        which = "whose names are known as those of queries or of the middle of an MLP" if subset else "that could train"
        return ModelError(
            f"{type(model).__name__} has no biases {which}",
            where="strategy.biases" if subset else "strategy",
            allowed="models with biases: BERT, RoBERTa, GPT-2, OPT, BART …; Llama and T5 have none",
            fix="set strategy.biases to all, or choose lora" if subset else "choose another strategy, lora for one",
        )


@hookimpl
def adaptkit_register_strategies(register: Callable[[type[BitFit]], None]) -> None:
    """Offers BitFit."""
    register(BitFit)
