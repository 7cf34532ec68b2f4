"""The options of a PEFT method: the fields of its config class, without what the framework decides."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field, create_model

from adaptkit.strategies._peft_fields import ConfigField, config_fields
from adaptkit.strategies._peft_methods import METHODS
from adaptkit.strategy import StrategyOptions

FRAMEWORK = frozenset(
    {
        # what the run and the base say
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "modules_to_save", "fan_in_fan_out", "tokenizer_name_or_path", "tokenizer_kwargs"),
        *("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers", "total_step"),
        # what is always saved
        *("save_projection", "save_indices", "save_precomputed_indices", "save_only_topk_weights"),
        # other systems, and what would change the base
        *("megatron_config", "megatron_core", "runtime_config", "layer_replication", "bias", "progressbar"),
    }
)
TARGET_HELP = {
    "all-linear": "all-linear, names of layers, or one regular expression over full names.",
    "all-norms": "all-norms, names of layers, or one regular expression over full names.",
}
OWN_HELP = {
    ("adalora", "tinit"): "Steps before the ranks begin to fall. Default: a tenth of the run.",
    ("adalora", "tfinal"): "Steps after the ranks have settled. Default: a fifth of the run.",
}


def peft_options(method: str) -> type[StrategyOptions]:
    """Returns the options of a method (``prompt-tuning``): the fields of its config that a recipe may set."""
    fields = {
        field.name: (field.type, Field(field.default, description=field.description)) for field in _offered(method)
    }
    title = "".join(part.capitalize() for part in method.split("-"))
    model: type[StrategyOptions] = create_model(
        f"Peft{title}Options",
        __base__=StrategyOptions,
        __doc__=f"The fields of PEFT's config for {method}.",
        __module__=__name__,
        **fields,  # type: ignore[call-overload]
    )
    return model


def _offered(method: str) -> Iterator[ConfigField]:
    known = METHODS[method]
    for field in config_fields(method.replace("-", "_")).values():
        if field.name in FRAMEWORK or field.name in known.without:
            continue
        if field.name == "target_modules" and known.targets:
            yield ConfigField(field.name, str | list[str], known.targets, TARGET_HELP[known.targets])
        else:
            kind = known.types.get(field.name, field.type)
            default = known.defaults.get(field.name, field.default)
            yield ConfigField(field.name, kind, default, OWN_HELP.get((method, field.name), field.description))
