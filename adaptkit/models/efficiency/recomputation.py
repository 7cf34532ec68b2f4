"""Gradient checkpointing: activations that the backward pass computes again instead of keeping them.

Every block of a model keeps its input alone (Chen et al. 2016, arXiv:1604.06174), or its input and the output of
attention (Korthikanti et al. 2022, arXiv:2205.05198), whose recomputation costs the most time for the memory it saves.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from adaptkit.errors import ModelError
from adaptkit.models.efficiency.host_activations import HostActivations

Recomputed: TypeAlias = Literal["whole", "selective"]

# Whose modules draw random numbers only where a setting says so: of PEFT's methods, pVeRA does without.
_KNOWN = ("torch.", "transformers.", "bitsandbytes.", "adaptkit.", "peft.tuners.lora.")
_ATTENTION = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "aten::_flash_attention_forward",
    "aten::_efficient_attention_forward",
    "aten::_cudnn_attention_forward",
    "torch_attn::_varlen_attn",
    "adaptkit::planned_attention",  # stands in for them while a plan is made
)


def checkpoint_gradients(model: nn.Module, recomputed: Recomputed, *, host: HostActivations | None = None) -> None:
    """Lets the blocks of a transformers model recompute their activations in the backward pass.

    The model's own `gradient_checkpointing_enable` would also make the embeddings ask for a gradient, which sends the
    backward pass through every frozen block below the first one that trains; that is not needed here.

    Args:
        model: The adapted model.
        recomputed: ``whole``: all but the blocks' inputs; ``selective``: all but those and the outputs of attention.
        host: Keeps the blocks' inputs meanwhile; None: they stay where they are.

    Raises:
        ModelError: The model has no blocks that can do it.
    """
    from transformers import PreTrainedModel

    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.supports_gradient_checkpointing:
            block_runner = BlockRunner(recomputed, host, draws=draws_at_random(model))
            module._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=block_runner)
            return
    raise ModelError(
        f"{type(model).__name__} cannot recompute its activations",
        where="training.gradient_checkpointing",
        fix="set training.gradient_checkpointing to false",
    )


class BlockRunner:
    """Runs a block in training so that its activations are computed again in the backward pass.

    Args:
        recomputed: As for `checkpoint_gradients`.
        host: Where the block's input waits; None: where it is.
        draws: Whether a block draws random numbers, which are then drawn again alike. Keeping the generators' state
            takes time in each block.
    """

    def __init__(self, recomputed: Recomputed, host: HostActivations | None = None, *, draws: bool = True) -> None:
        self._host = host
        self._options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": draws}
        if recomputed == "selective":
            self._options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)

    def __call__(self, block: Callable[..., Any], states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Returns what ``block(states, *args, **kwargs)`` does; ``states`` are ``(batch, seq, hidden)``."""
        with self._waiting(states):
            return checkpoint(block, states, *args, **self._options, **kwargs)

    def _waiting(self, states: Tensor) -> AbstractContextManager[Any]:
        return nullcontext() if self._host is None else self._host.saving(states)


def draws_at_random(model: nn.Module) -> bool:
    """Returns whether a forward pass in training may draw random numbers; where nothing is known it may.

    Dropout is known by the names of modules and settings, and by its rate. A router whose config knows of jitter or
    noise may draw without it, as Phi's does.
    """
    return any(not type(module).__module__.startswith(_KNOWN) or _draws(module) for module in model.modules())


def _draws(module: nn.Module) -> bool:
    config = getattr(module, "config", None)
    settings = {**(vars(config) if hasattr(config, "__dict__") else {}), **vars(module)}
    if "drop" in type(module).__name__.lower():
        settings |= {f"dropout/{name}": settings.get(name, 0) for name in ("p", "drop_prob")}
    return any(
        "jitter" in name or "noise" in name or ("drop" in name and _is_on(value)) for name, value in settings.items()
    )


def _is_on(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def _policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keeps what attention gives, unless it draws random numbers.

    An operator that is not run again would not move the generator on, and what is dropped behind it would change.
    """
    place = _dropout_place(operator)
    if place is None or kwargs.get("dropout_p", args[place] if place < len(args) else 0.0):
        return CheckpointPolicy.PREFER_RECOMPUTE
    return CheckpointPolicy.MUST_SAVE


@cache
def _dropout_place(operator: Any) -> int | None:
    """Returns where an attention operator is told its dropout rate (nowhere: behind all); None: it is another one."""
    schema = getattr(operator, "_schema", None)
    if schema is None or schema.name not in _ATTENTION:
        return None
    names = [argument.name for argument in schema.arguments]
    return names.index("dropout_p") if "dropout_p" in names else len(names)
