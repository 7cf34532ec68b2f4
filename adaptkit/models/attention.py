"""Learned keys and values in front of every attention layer's own (prefix tuning).

The prefix enters where a model of transformers hands its queries, keys and values to an attention function
chosen by name. There the keys are already rotated and the cache is already updated, so that a prefix costs no
cache, shifts no position and is recomputed like everything else under gradient checkpointing.

Sources: Li and Liang 2021 (arXiv:2101.00190) for generation, Liu et al. 2022 (arXiv:2110.07602) for encoders.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from adaptkit.errors import ModelError

IMPLEMENTATION = "adaptkit_prefix"
CHILD = "prefix_kv"

_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_heads")
_HEADS = ("num_heads", "n_heads", "num_attention_heads")
_KEY_DIM = ("qk_head_dim", "head_dim", "attention_head_size", "head_size", "key_value_proj_dim")
# Latent attention (DeepSeek-V2) has values of another size than keys.
_VALUE_DIM = ("v_head_dim",)


class PrefixKV(nn.Module):
    """The learned keys and values of one attention layer, fp32 whatever the base's precision.

    Attributes:
        key: ``(kv_heads, num_virtual_tokens, key_dim)``, as it stands after any rotation.
        value: ``(kv_heads, num_virtual_tokens, value_dim)``.
        enabled: Whether they are put in front; when not, the layer behaves as the base's does.
    """

    def __init__(
        self, kv_heads: int, num_virtual_tokens: int, key_dim: int, value_dim: int, device: torch.device
    ) -> None:
        super().__init__()
        shape = (kv_heads, num_virtual_tokens)
        self.key = nn.Parameter(torch.zeros((*shape, key_dim), dtype=torch.float32, device=device))
        self.value = nn.Parameter(torch.zeros((*shape, value_dim), dtype=torch.float32, device=device))
        self.enabled = True

    def forward(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Puts the prefix in front of ``key`` and ``value`` of shape ``(batch, kv_heads, seq, head_dim)``.

        Raises:
            ModelError: The layer has other heads than its config says.
        """
        for prefix, states in ((self.key, key), (self.value, value)):
            if (states.shape[1], states.shape[3]) != (prefix.shape[0], prefix.shape[2]):
                raise _refusal(
                    f"an attention layer has {states.shape[1]} key/value heads of size {states.shape[3]} "
                    f"where the model's config says {prefix.shape[0]} of size {prefix.shape[2]}"
                )
        if not self.enabled:
            return key, value
        return self._prepend(self.key, key), self._prepend(self.value, value)

    @staticmethod
    def _prepend(prefix: Tensor, states: Tensor) -> Tensor:
        expanded = prefix.to(states.dtype).unsqueeze(0).expand(states.shape[0], -1, -1, -1)
        return torch.cat((expanded, states), dim=2)


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention in which every query also sees the layer's prefix, if it has one.

    Args:
        module: The attention layer.
        query: ``(batch, heads, queries, head_dim)``.
        key: ``(batch, kv_heads, seq, head_dim)``, cached ones included.
        value: As ``key``.
        attention_mask: Bool (True: visible) or additive, ``(batch or 1, heads or 1, queries, seq)``; None: see
            ``is_causal``.
        is_causal: Whether no mask means causal; None: what the layer says.
        position_bias: Added to the scores (T5), ``(1, heads, queries, seq)``; the prefix has a bias of 0.
        kwargs: What else the sdpa implementation of transformers takes.

    Returns:
        The output, ``(batch, queries, heads, head_dim)``, and None in place of the attention weights.
    """
    prefix = getattr(module, CHILD, None)
    if prefix is not None:
        seq = key.shape[2]
        key, value = prefix(key, value)
        added = key.shape[2] - seq
        if added:
            causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
            attention_mask = _widened_mask(attention_mask, causal, query.shape[2], seq, added, query.device)
            position_bias = None if position_bias is None else pad(position_bias, (added, 0))
            is_causal = False
    output: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, is_causal=is_causal, position_bias=position_bias, **kwargs
    )
    return output


def _widened_mask(
    mask: Tensor | None, causal: bool, queries: int, seq: int, added: int, device: torch.device
) -> Tensor | None:
    """Returns a mask of width ``added + seq`` in which the prefix is visible; None: everything is visible."""
    if mask is None and causal and queries > 1:
        mask = torch.ones(1, 1, queries, seq, dtype=torch.bool, device=device).tril()
    if mask is None:
        return None
    return pad(mask, (added, 0), value=1.0 if mask.dtype == torch.bool else 0.0)


def register_prefix_attention() -> None:
    """Makes `prefix_attention` known to transformers, with sdpa's masks. Calling it again changes nothing."""
    AttentionInterface.register(IMPLEMENTATION, prefix_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def attach_prefixes(model: nn.Module, num_virtual_tokens: int) -> list[str]:
    """Gives every attention layer a `PrefixKV` child of zeros and makes the model use it.

    Cross-attention gets a prefix of its own, as in Li and Liang. Works on the meta device.

    Args:
        model: A model of transformers, or a module that holds one.
        num_virtual_tokens: Length of the prefix, in tokens.

    Returns:
        The names of the prefix modules.

    Raises:
        ModelError: The model's attention cannot be reached.
    """
    layers = {name: module for name, module in model.named_modules() if _dispatches(module)}
    backbones = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    kind = type((backbones or [model])[0]).__name__
    unreachable = f"{kind} does not let its attention be extended, so it cannot carry a prefix"
    if not layers or not backbones or not all(backbone._supports_sdpa for backbone in backbones):
        raise _refusal(unreachable)
    shapes = {name: _head_shape(name, layer) for name, layer in layers.items()}
    register_prefix_attention()
    for backbone in backbones:
        if backbone.config._attn_implementation != IMPLEMENTATION:
            backbone.set_attn_implementation(IMPLEMENTATION)
    if any(layer.config._attn_implementation != IMPLEMENTATION for layer in layers.values()):
        raise _refusal(unreachable)
    for name, layer in layers.items():
        kv_heads, key_dim, value_dim = shapes[name]
        device = next(layer.parameters()).device
        layer.add_module(CHILD, PrefixKV(kv_heads, num_virtual_tokens, key_dim, value_dim, device))
    return [f"{name}.{CHILD}" for name in layers]


@contextmanager
def disabled_prefixes(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes bit for bit what its base computes with sdpa attention."""
    enabled = [prefix for prefix in prefixes(model).values() if prefix.enabled]
    for prefix in enabled:
        prefix.enabled = False
    try:
        yield
    finally:
        for prefix in enabled:
            prefix.enabled = True


def prefixes(model: nn.Module) -> dict[str, PrefixKV]:
    """Returns the prefix modules of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PrefixKV)}


def capture_prefix(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
    """Sets the prefixes to the keys and values that the base itself computes for real text.

    The base reads the first ``num_virtual_tokens`` real tokens of the batches as one row. With rotary
    positions it reads them at positions -P to -1, so that the prefix acts as that text in front of every row;
    with learned positions at 0 to P-1. A decoder behind an encoder reads ``decoder_input_ids`` where the
    batches have them, else the same text.

    Args:
        model: With prefixes attached, in eval mode; ``input_ids`` and ``attention_mask`` of ``(batch, seq)``.
        batches: Read only as far as needed; a text that is too short is repeated.

    Raises:
        ModelError: A layer was not reached, or the base cannot read a text of that length.
    """
    found = prefixes(model)
    length = next(iter(found.values())).key.shape[1]
    backbone = next(module for module in model.modules() if isinstance(module, PreTrainedModel)).base_model
    inputs = _text_inputs(backbone, batches, length)
    reached: set[nn.Module] = set()

    def take(prefix: nn.Module, states: tuple[Tensor, Tensor], _: object) -> None:
        assert isinstance(prefix, PrefixKV)
        for parameter, tensor in zip((prefix.key, prefix.value), states, strict=True):
            parameter.copy_(tensor[0])
        reached.add(prefix)

    handles = [prefix.register_forward_hook(take) for prefix in found.values()]
    try:
        # A bf16 base may have parts that train, and so are fp32.
        mixed = torch.autocast(backbone.device.type, torch.bfloat16, enabled=backbone.dtype == torch.bfloat16)
        with torch.no_grad(), disabled_prefixes(model), mixed:
            backbone(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    if missed := [name for name, prefix in found.items() if prefix not in reached]:
        raise _refusal(f"{len(missed)} attention layers of {type(backbone).__name__} do not read the text", missed[0])


def _text_inputs(backbone: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], length: int) -> dict[str, Tensor]:
    """Returns one row of ``length`` real tokens, every tensor of shape ``(1, length)``."""
    accepted = inspect.signature(backbone.forward).parameters
    rotary = any("rotary" in type(module).__name__.lower() for module in backbone.modules())
    positions = getattr(backbone.config, "max_position_embeddings", None)
    if not rotary and positions is not None and length > positions:
        raise ModelError(
            f"a prefix of {length} virtual tokens, but {type(backbone).__name__} has {positions} positions",
            where="strategy.num_virtual_tokens",
            allowed=f"at most {positions}",
            fix="lower num_virtual_tokens, or set init: random",
        )
    text = _texts(batches, length)
    inputs = {"input_ids": text["input_ids"], "attention_mask": torch.ones_like(text["input_ids"])}
    if backbone.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = text.get("decoder_input_ids", text["input_ids"])
    if rotary:
        before_zero = torch.arange(-length, 0).unsqueeze(0)
        inputs |= {name: before_zero for name in ("position_ids", "decoder_position_ids") if name in accepted}
    return {name: tensor.to(backbone.device) for name, tensor in inputs.items()}


def _texts(batches: Iterable[Mapping[str, Tensor]], length: int) -> dict[str, Tensor]:
    """Returns the first ``length`` real tokens of each kind, ``(1, length)``; too few are repeated."""
    masks = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}
    rows: dict[str, list[Tensor]] = {}
    for batch in batches:
        for name in masks.keys() & batch.keys():
            rows.setdefault(name, []).append(_real_tokens(batch[name], batch.get(masks[name])))
        if sum(map(len, rows["input_ids"])) >= length:
            break
    tokens = {name: torch.cat(parts) for name, parts in rows.items()}
    if not tokens or not all(map(len, tokens.values())):
        raise ModelError(
            "the training batches hold no token, so there is no text to start the prefix from",
            fix="check the training data, or set init: random",
        )
    return {name: part.repeat(-(-length // len(part)))[:length].unsqueeze(0) for name, part in tokens.items()}


def _real_tokens(ids: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the ids that are not padding, in one dimension and on the CPU."""
    if mask is None or mask.shape != ids.shape:
        return ids.flatten().cpu()
    return ids[mask.bool()].cpu()


def _dispatches(module: nn.Module) -> bool:
    """Returns whether a module's forward chooses its attention function by name, read from its bytecode."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _head_shape(name: str, layer: nn.Module) -> tuple[int, int, int]:
    """Returns the number of key/value heads of an attention layer, and the size of their keys and of their values."""
    config: Any = layer.config
    heads = _first_int(_KV_HEADS, layer, config) or _first_int(_HEADS, layer, config)
    size = _first_int(_KEY_DIM, layer, config)
    if size is None and hasattr(config, "hidden_size") and hasattr(config, "num_attention_heads"):
        size = int(config.hidden_size // config.num_attention_heads)
    if heads is None or size is None:
        raise _refusal(f"neither {type(layer).__name__} nor its config tells its key/value heads and their size", name)
    return heads, size, _first_int(_VALUE_DIM, layer) or size


def _first_int(names: Iterable[str], *owners: object) -> int | None:
    values = (getattr(owner, name, None) for owner in owners for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def _refusal(found: str, where: str | None = None) -> ModelError:
    return ModelError(
        found,
        where=where,
        allowed="models whose attention goes through transformers' attention interface and supports sdpa "
        "(BERT, RoBERTa, DistilBERT, ELECTRA, ModernBERT, GPT-2, Llama, T5, BART and most others)",
        fix="choose another strategy for this model, such as lora",
    )
