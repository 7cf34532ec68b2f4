"""The config of a base: its own, with the recipe's changes, and for new weights in accord with the tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptkit.errors import ModelError, Problem, did_you_mean
from adaptkit.models.base.library import as_model_error, quiet_transformers
from adaptkit.models.base.local import check_local, is_architecture
from adaptkit.recipe import ModelSpec

if TYPE_CHECKING:
    from torch import nn

# What makes it another kind of model, or belongs to the task.
FIXED_KEYS = frozenset(
    {
        *("model_type", "architectures", "is_encoder_decoder", "is_decoder", "add_cross_attention", "dtype"),
        *("id2label", "label2id", "num_labels", "problem_type"),
    }
)
# A tokenizer of one kind has no such token but one that stands in its place: BERT's end of a text is [SEP].
STAND_INS = {
    "bos": ("bos", "cls", "eos"),
    "eos": ("eos", "sep"),
    "cls": ("cls", "bos", "eos"),
    "sep": ("sep", "eos"),
    "decoder_start": ("pad",),
}


def load_config(spec: ModelSpec) -> Any:
    """Returns the transformers config of a base, with the values that the recipe changes.

    Raises:
        ModelError: There is no such model, here or on the hub; or it has no such value, or none of that type.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    check_local(spec)
    with as_model_error(spec):
        if is_architecture(spec):
            config_class, values = CONFIG_MAPPING[spec.name], {}
            config = config_class()
        else:
            config = AutoConfig.from_pretrained(spec.name, revision=spec.revision, trust_remote_code=False)
            config_class = type(config)
            values, _ = config_class.get_config_dict(spec.name, revision=spec.revision)
    if not spec.config:
        return config
    _check_keys(spec, config)
    # Made anew, not updated: some values follow from others (head_dim from hidden_size), and all are checked.
    changed = _made(config_class, {**values, **_own_names(config, spec.config)}, spec)
    _check_depth(spec, changed)
    if spec.init == "pretrained":
        _check_shapes(spec, config, changed)
    return changed


def fit_to_tokenizer(config: Any, tokenizer: Any, spec: ModelSpec) -> None:
    """Gives the config of new weights the vocabulary and the special tokens of the tokenizer, in place.

    What the recipe sets stays. A decoder behind an encoder begins with the padding token, as T5's does.

    Raises:
        ModelError: The recipe's vocabulary is too small.
    """
    text, size = config.get_text_config(), largest_id(tokenizer) + 1
    wanted = spec.config.get("vocab_size")
    if wanted is not None and wanted < size:
        raise ModelError(
            f"model.config.vocab_size is {wanted}, but the tokenizer has {size} tokens",
            where="model.config.vocab_size",
            allowed=f"{size} or more",
            fix="leave it out: it follows the tokenizer",
        )
    if spec.tokenizer is None and text.vocab_size >= size:
        return
    before, values = text.vocab_size, text.to_dict()
    follow = {key: size for key, value in values.items() if key.endswith("_vocab_size") and value == before}
    follow["vocab_size"] = size
    if spec.tokenizer is not None:
        ids = {key: _token_id(key, value, tokenizer) for key, value in values.items() if key.endswith("_token_id")}
        follow |= {key: number for key, number in ids.items() if number is not None}
        if config.is_encoder_decoder:
            follow["decoder_start_token_id"] = tokenizer.pad_token_id
    for key in follow.keys() - spec.config.keys():
        setattr(text, key, follow[key])


def _token_id(key: str, value: Any, tokenizer: Any) -> int | None:
    """Returns the tokenizer's id for a key of a config such as ``eos_token_id``."""
    role = key.removesuffix("_token_id").removeprefix("forced_")
    if value is None and role not in ("pad", "eos"):
        return None
    for name in STAND_INS.get(role, (role,)):
        found: int | None = getattr(tokenizer, f"{name}_token_id", None)
        if found is not None:
            return found
    return None


def largest_id(tokenizer: Any) -> int:
    """Returns the largest id that a tokenizer gives; it may be more than its length says."""
    return max(int(number) for number in tokenizer.get_vocab().values())


def meta_model(config: Any, spec: ModelSpec) -> nn.Module:
    """Returns the bare model of a config on the meta device: shapes without weights.

    Raises:
        ModelError: The config makes no model.
    """
    import torch
    from transformers import AutoModel

    try:
        with quiet_transformers(), torch.device("meta"):
            model: nn.Module = AutoModel.from_config(config)
    except Exception as error:  # The constructors of 400 architectures raise errors of no common class.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"the config makes no model: {reason}",
            where="model.config" if spec.config else spec.name,
            fix="check the values: sizes are positive, and hidden_size is a multiple of the number of heads",
        ) from error
    return model


def can_recompute(config: Any) -> bool:
    """Returns whether the blocks of a config's model can compute their activations again (ALBERT's cannot)."""
    from transformers import MODEL_MAPPING

    found = MODEL_MAPPING.get(type(config), None)
    classes = found if isinstance(found, list | tuple) else (found,)
    return found is None or any(one.supports_gradient_checkpointing for one in classes)


def positions(config: Any, spec: ModelSpec) -> int | None:
    """Returns how many tokens a model has positions for; None: as many as one likes.

    RoBERTa and its kin count them from behind the id of the padding token, so that the first ones are never used.
    """
    from torch import nn

    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return None
    try:
        model = meta_model(config, spec)
    except ModelError:
        return limit
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings == limit and module.padding_idx is not None:
            embedding = getattr(model, "get_input_embeddings", lambda: None)()
            if module is not embedding:
                return limit - module.padding_idx - 1
    return limit


def _own_names(config: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Returns values by the names that the architecture has for them (GPT-2's ``n_embd`` is its hidden_size)."""
    return {config.attribute_map.get(key, key): value for key, value in changes.items()}


def _check_keys(spec: ModelSpec, config: Any) -> None:
    """Raises for every key that the config does not have; transformers would take it and ignore it."""
    from transformers import PreTrainedConfig

    known = {key for key in (*config.to_dict(), *config.attribute_map) if not key.startswith("_")} - FIXED_KEYS
    special = sorted(known - PreTrainedConfig().to_dict().keys())
    problems = [
        Problem(
            f"{type(config).__name__} has no value {key!r} that a recipe can change",
            where=f"model.config.{key}",
            allowed=", ".join(special),
            fix=did_you_mean(key, sorted(known)) or "remove it",
        )
        for key in spec.config
        if key not in known
    ]
    if problems:
        raise ModelError(problems)


def _made(config_class: Any, values: dict[str, Any], spec: ModelSpec) -> Any:
    """Returns a config of these values.

    Raises:
        ModelError: One of them is of the wrong type.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        with quiet_transformers():
            return config_class.from_dict(values)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ModelError(
            f"the config is not accepted: {_reason(error)}",
            where=", ".join(f"model.config.{key}" for key in spec.config if key in str(error)) or "model.config",
            fix=f"the values of {config_class.__name__} and their types are in transformers' documentation of it",
        ) from error


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip().removeprefix("TypeError: ")


def _check_depth(spec: ModelSpec, config: Any) -> None:
    """Raises for a model without layers, which transformers would make."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers < 1:
        keys = [key for key in spec.config if "layer" in key]
        raise ModelError(
            f"the model would have {layers} layers",
            where=", ".join(f"model.config.{key}" for key in keys) or "model.config",
            allowed="1 or more",
            fix="raise it, or leave it out",
        )


def _check_shapes(spec: ModelSpec, config: Any, changed: Any) -> None:
    """Raises when changed values give a model other tensors than those that the files hold."""
    before = {name: tensor.shape for name, tensor in meta_model(config, spec).state_dict().items()}
    after = {name: tensor.shape for name, tensor in meta_model(changed, spec).state_dict().items()}
    if before == after:
        return
    name = min(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    shapes = [str(tuple(shape)) if shape is not None else "none" for shape in (before.get(name), after.get(name))]
    raise ModelError(
        f"model.config changes the shape of pretrained weights: {name} has {shapes[0]} in the model's files and "
        f"would have {shapes[1]}",
        where=", ".join(f"model.config.{key}" for key in spec.config),
        allowed="values that change no shape: dropout rates, attention windows, the length of a RoPE",
        fix="leave the value out, or set model.init to random for a new model of this shape",
    )
