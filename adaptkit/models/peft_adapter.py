"""PEFT's adapters on a model: put in, saved under the names that `PeftModel` gives them, switched off, merged."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import (
    PeftConfig,
    PeftModel,
    PeftModelForCausalLM,
    PeftModelForFeatureExtraction,
    PeftModelForSeq2SeqLM,
    get_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from adaptkit.models.base.library import quiet_transformers
from adaptkit.strategy import AdaptContext

ADAPTER = "default"


class LayerAdapter(nn.Module):
    """The layers of one method, injected into a model that stays unwrapped.

    It stands in the place of a `PeftModel`, so that every tensor has the name by which PEFT loads it.

    Args:
        model: Is changed in place.
        config: Of the method; PEFT completes it.

    Attributes:
        base_model: PEFT's tuner; it holds the model and what the layers share (VeRA's projections).
        added: Names of all tensors that are not the model's own, frozen ones and buffers included.
    """

    def __init__(self, model: nn.Module, config: PeftConfig) -> None:
        super().__init__()
        known = {id(tensor) for tensor in _tensors(model).values()}
        self.base_model = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](model, {ADAPTER: config}, ADAPTER)
        if hasattr(self.base_model, "_cast_adapter_dtype"):
            self.base_model._cast_adapter_dtype(adapter_name=ADAPTER, autocast_adapter_dtype=True)
        self.added = [name for name, tensor in _tensors(self).items() if id(tensor) not in known]

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """PEFT's configs, by the name of the adapter."""
        configs: dict[str, PeftConfig] = self.base_model.peft_config
        return configs


class PromptedModel(PeftModelForFeatureExtraction):  # type: ignore[misc]
    """Virtual tokens in front of any model that reads a text, whatever its head is.

    PEFT's own wrappers for classification would train a copy of the head.
    """

    def _adjust_prompt_learning_kwargs(self, peft_config: PeftConfig, *, kwargs: dict[str, Any]) -> None:
        """Lets the virtual tokens belong to the first of two texts; PEFT would drop which token is of which text."""
        types = kwargs.pop("token_type_ids", None)
        super()._adjust_prompt_learning_kwargs(peft_config, kwargs=kwargs)
        if types is not None:
            kwargs["token_type_ids"] = nn.functional.pad(types, (peft_config.num_virtual_tokens, 0))

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Calls the model itself within the context; PEFT would ask it how it generates."""
        self.forward = self.base_model.forward
        try:
            yield
        finally:
            del self.forward


class PromptedDecoderClassifier(PromptedModel):
    """Virtual tokens in front of a decoder whose head reads the last token of each text.

    transformers' classifiers find it by the padding ids, which they do not see where embeddings are handed over, and
    would read the last token of the padding.

    Attributes:
        heads: Names of the head's modules.
    """

    heads: tuple[str, ...] = ()

    def forward(self, *arguments: Any, attention_mask: Tensor, **inputs: Any) -> Any:
        """Returns what the model returns, its head being shown the last token of each text alone."""

        def narrow(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            hidden = given[0]
            if hidden.ndim != 3 or hidden.shape[1] <= attention_mask.shape[1]:
                return None
            positions = torch.arange(attention_mask.shape[1], device=hidden.device)
            last = (attention_mask * positions).argmax(1) + hidden.shape[1] - attention_mask.shape[1]
            return (hidden[torch.arange(len(hidden), device=hidden.device), last].unsqueeze(1), *given[1:])

        handles = [self.base_model.get_submodule(name).register_forward_pre_hook(narrow) for name in self.heads]
        try:
            with quiet_transformers():  # it warns of the padding
                return super().forward(*arguments, attention_mask=attention_mask, **inputs)
        finally:
            for handle in handles:
                handle.remove()


class PromptedCausalModel(PeftModelForCausalLM):  # type: ignore[misc]
    """Virtual tokens, or their keys and values, in front of a model that writes.

    Its config says how many positions are left behind them, so that no text is written beyond the last.
    """

    config: Any

    def __init__(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        super().__init__(model, config, adapter_name)
        positions = getattr(self.config, "max_position_embeddings", None)
        if positions is not None:
            self.config = copy.copy(self.config)
            self.config.max_position_embeddings = positions - config.num_virtual_tokens

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Counts positions without the padding that may stand between virtual tokens and text.

        PEFT counts it too, so that what a model writes for a row would depend on the longest row of the batch.
        """
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)
        mask = inputs.get("attention_mask")  # there is none where no row is padded
        if mask is not None and "position_ids" in inputs and inputs["position_ids"] is None:
            read = inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)
            inputs["position_ids"] = positions[:, -read.shape[1] :]
        return inputs


def wrap_prompt(model: nn.Module, config: PeftConfig, context: AdaptContext) -> PeftModel:
    """Returns a model that PEFT puts virtual tokens in front of, wrapped as the task needs it."""
    if context.peft_task_type == "SEQ_CLS" and context.family == "decoder":
        classifier = PromptedDecoderClassifier(model, config, adapter_name=ADAPTER)
        classifier.heads = context.head_modules
        return classifier
    wrappers = {"CAUSAL_LM": PromptedCausalModel, "SEQ_2_SEQ_LM": PeftModelForSeq2SeqLM}
    return wrappers.get(context.peft_task_type or "", PromptedModel)(model, config, adapter_name=ADAPTER)


def peft_state(adapter: LayerAdapter | PeftModel, others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors that PEFT saves, every other one that the adapter added, and `others`.

    All are the live ones, each stands there once.

    Args:
        adapter: On its model.
        others: Tensors of the model that are saved too, by the names that PEFT has for them.
    """
    config = adapter.peft_config[ADAPTER]
    peft_own = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    rename = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]._remove_adapter_name_from_key
    everything = _tensors(adapter)
    names = adapter.added if isinstance(adapter, LayerAdapter) else ()
    added = {rename(name, ADAPTER): everything[name] for name in names}
    state: dict[Any, tuple[str, Tensor]] = {}
    for name, tensor in [*peft_own.items(), *added.items(), *others.items()]:
        state.setdefault(_place(tensor), (name, tensor.detach()))
    return dict(state.values())


def tuner_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Returns PEFT's layers in a model, by name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def disabled_layers(model: nn.Module) -> Iterator[None]:
    """Switches PEFT's layers off within the context."""
    layers = tuner_layers(model)
    for _, layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for _, layer in layers:
            layer.enable_adapters(True)


def merge_layers(model: nn.Module) -> nn.Module:
    """Adds the adapter's weights to the base's and takes PEFT's layers out again."""
    for name, layer in tuner_layers(model):
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    return model


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _place(tensor: Tensor) -> tuple[int, torch.Size, torch.dtype]:
    """Returns what two tensors have in common that are views of the same memory."""
    return tensor.data_ptr(), tensor.shape, tensor.dtype
