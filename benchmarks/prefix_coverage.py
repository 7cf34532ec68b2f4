"""On how many architectures of transformers prefix tuning works: adaptkit's, and PEFT's on the same list.

    python -m benchmarks prefix-coverage [--write]

Every model type of the Auto classes for masked, causal and sequence-to-sequence language models is built with
random weights from a tiny config. It counts when its prefix trains under gradient checkpointing, with the gradients
that it has without, when its output depends on every prefix, and not on padding.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptkit.errors import ModelError
from adaptkit.models.attention import attach_prefixes, capture_prefix, disabled_prefixes, prefixes
from adaptkit.strategy import Family
from benchmarks.report import machine, replace_block

DOCUMENT = Path("docs/strategies.md")
WORKS = "works"
REFUSED = "refused"
LARGEST = 4_000_000  # parameters; what does not become smaller has sizes that no common name reaches
VOCABULARY, VIRTUAL_TOKENS = 64, 4

# Values by the names that configs of transformers give to sizes; a config takes those that it knows.
WIDTHS = "hidden_size d_model n_embd dim emb_dim embedding_size word_embed_proj_dim intermediate_size d_ff hidden_dim"
WIDTHS += " ffn_dim encoder_ffn_dim decoder_ffn_dim"
DEPTHS = "num_hidden_layers n_layer n_layers num_layers num_decoder_layers encoder_layers decoder_layers"
HEADS = "num_attention_heads num_key_value_heads n_head n_heads num_heads encoder_attention_heads"
HEADS += " decoder_attention_heads"
EXPERTS = "num_local_experts num_experts n_routed_experts"
DROPOUTS = "hidden_dropout_prob attention_probs_dropout_prob attn_pdrop resid_pdrop embd_pdrop dropout_rate dropout"
DROPOUTS += " attention_dropout activation_dropout hidden_dropout residual_dropout router_jitter_noise"
DROPOUTS += " input_jitter_noise"
SIZES: dict[str, Any] = {
    **dict.fromkeys(WIDTHS.split(), 32),
    **dict.fromkeys(DEPTHS.split(), 2),
    **dict.fromkeys(HEADS.split(), 4),
    **dict.fromkeys(EXPERTS.split(), 4),
    **dict.fromkeys(DROPOUTS.split(), 0.0),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("head_dim", "d_kv", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "moe_intermediate_size"), 16),
    "rotary_dim": 4,
    "num_experts_per_tok": 2,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


@dataclass(frozen=True)
class Outcome:
    """What became of one architecture.

    Attributes:
        model_type: As transformers calls it.
        verdict: `WORKS`, `REFUSED` (by an error that a user sees before training), or what is wrong.
    """

    model_type: str
    verdict: str


def architectures() -> dict[str, Family]:
    """Returns every model type that transformers offers for language modelling, with its family."""
    from transformers.models.auto import modeling_auto as auto

    families: dict[str, Family] = {}
    mappings: list[tuple[Family, Any]] = [
        ("encoder-decoder", auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
        ("encoder", auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
        ("decoder", auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    ]
    for family, names in mappings:
        for name in names:
            families.setdefault(name, family)
    return families


def tiny_model(model_type: str, family: Family) -> nn.Module | None:
    """Returns a tiny model with random weights that computes; None where the common names of sizes do not make one."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    classes: dict[Family, Any] = {
        "encoder": AutoModelForMaskedLM,
        "decoder": AutoModelForCausalLM,
        "encoder-decoder": AutoModelForSeq2SeqLM,
    }
    try:
        default = AutoConfig.for_model(model_type)
        known = default.to_dict().keys() | default.attribute_map.keys()
        config = AutoConfig.for_model(model_type, **{name: SIZES[name] for name in SIZES if name in known})
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in classes[family].from_config(config).parameters())
        if size > LARGEST:
            return None
        torch.manual_seed(0)
        model: nn.Module = classes[family].from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
            finite = logits(model.requires_grad_(False).eval(), batch(family)).isfinite().all()
        return model if finite else None
    except Exception:  # Whatever a config or a model of these sizes raises: it cannot be judged.
        return None


def batch(family: Family) -> dict[str, Tensor]:
    """Returns two rows of 5 and 9 tokens, padded to 9 on the right."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    rows = {"input_ids": ids * mask, "attention_mask": mask}
    if family == "encoder-decoder":
        rows["decoder_input_ids"] = torch.randint(3, VOCABULARY, (2, 6), generator=generator)
    return rows


def logits(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    """Returns fp32 logits, computed without a cache."""
    model.config.use_cache = False  # type: ignore[union-attr]
    output: Tensor = model(**rows).logits
    return output.float()


def adaptkit_verdict(model: nn.Module, family: Family) -> str:
    """Returns whether adaptkit's prefixes work on a model, are refused, or what is wrong with them."""
    rows = batch(family)
    try:
        attach_prefixes(model, VIRTUAL_TOKENS)
        capture_prefix(model, [rows])
        for prefix in prefixes(model).values():
            for parameter in prefix.requires_grad_(True).parameters():
                parameter.data.normal_(0, 0.5)
        without = gradients(model, rows)
    except ModelError:
        return REFUSED
    if not getattr(model, "supports_gradient_checkpointing", False):
        return "the model has no gradient checkpointing"
    if any(gradient is None or not gradient.any() for gradient in without.values()):
        return "a prefix changes nothing"
    with torch.no_grad(), disabled_prefixes(model):
        unprefixed = padding_difference(model, rows)
    with torch.no_grad():
        if padding_difference(model, rows) > max(1e-3, 2 * unprefixed):
            return "the output depends on padding"
    return WORKS if same(without, gradients(model, rows, checkpointing=True)) else "checkpointing changes the gradient"


def peft_verdict(model: nn.Module, family: Family, *, checkpointing: bool) -> str:
    """Returns whether PEFT's prefix tuning gives every prefix a gradient, or what it raises."""
    from peft import PrefixTuningConfig, get_peft_model

    kinds: dict[Family, str] = {
        "encoder": "FEATURE_EXTRACTION",  # for its other tasks PEFT looks for a classifier
        "decoder": "CAUSAL_LM",
        "encoder-decoder": "SEQ_2_SEQ_LM",
    }
    try:
        config = PrefixTuningConfig(task_type=kinds[family], num_virtual_tokens=VIRTUAL_TOKENS)
        adapted = get_peft_model(model, config)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        score: Tensor = adapted.train()(**batch(family)).logits.float().square().mean()
        score.backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # Of every kind.
        return f"{type(error).__name__}"
    learned = [parameter.grad for parameter in adapted.parameters() if parameter.requires_grad]
    return WORKS if all(gradient is not None and bool(gradient.any()) for gradient in learned) else "no gradient"


def gradients(model: nn.Module, rows: dict[str, Tensor], *, checkpointing: bool = False) -> dict[str, Tensor | None]:
    """Returns the gradient of every prefix tensor."""
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    model.zero_grad()
    logits(model, rows).square().mean().backward()  # type: ignore[no-untyped-call]
    model.eval()
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: None if p.grad is None else p.grad.clone() for name, p in learned.items()}


def same(one: dict[str, Tensor | None], other: dict[str, Tensor | None]) -> bool:
    """Returns whether two sets of gradients agree to 1e-4 of the largest entry of each tensor."""
    return all(
        a is not None and (b := other[name]) is not None and bool((a - b).abs().max() <= 1e-4 * a.abs().max())
        for name, a in one.items()
    )


def padding_difference(model: nn.Module, rows: dict[str, Tensor]) -> float:
    """Returns by how much the logits of the short row change when its padding is taken away."""
    padded = {name: tensor[:1] for name, tensor in rows.items()}
    real = int(padded["attention_mask"].sum())
    alone = {name: t if name.startswith("decoder") else t[:, :real] for name, t in padded.items()}
    short = logits(model, alone)
    return float((logits(model, rows)[:1, : short.shape[1]] - short).abs().max())


def walk() -> Iterator[Outcome]:
    """Yields adaptkit's outcome on every architecture that can be built small."""
    for model_type, family in architectures().items():
        model = tiny_model(model_type, family)
        if model is not None:
            yield Outcome(model_type, adaptkit_verdict(model, family))


def main(arguments: list[str]) -> None:
    """Walks, prints, and with --write puts the figures into the documentation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks prefix-coverage")
    parser.add_argument("--write", action="store_true", help=f"replace the figures in {DOCUMENT}")
    options = parser.parse_args(arguments)
    outcomes = list(walk())
    families = architectures()
    peft = {
        checkpointing: sum(
            peft_verdict(model, families[outcome.model_type], checkpointing=checkpointing) == WORKS
            for outcome in outcomes
            if (model := tiny_model(outcome.model_type, families[outcome.model_type])) is not None
        )
        for checkpointing in (False, True)
    }
    for outcome in outcomes:
        print(f"{outcome.model_type}: {outcome.verdict}")
    text = summary(outcomes, peft)
    print(text)
    if options.write:
        replace_block("prefix-coverage", text, DOCUMENT)


def summary(outcomes: list[Outcome], peft: dict[bool, int]) -> str:
    """Returns the figures in words, and the architectures by name."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    works = [f"`{outcome.model_type}`" for outcome in outcomes if outcome.verdict == WORKS]
    other = [f"`{o.model_type}` ({o.verdict})" for o in outcomes if o.verdict not in (WORKS, REFUSED)]
    return "\n\n".join(
        [
            f"Of {len(outcomes)} architectures that could be built small, prefix tuning trains under gradient "
            f"checkpointing on **{counts[WORKS]}**, and refuses {counts[REFUSED]} by name before training. PEFT's "
            f"prefix tuning gives its prefix a gradient on {peft[True]} of the same list under gradient "
            f"checkpointing, on {peft[False]} without.",
            f"It works on {', '.join(works)}.",
            f"Neither: {', '.join(other) or 'none'}.",
            f"{machine()}; `python -m benchmarks prefix-coverage --write`.",
        ]
    )
