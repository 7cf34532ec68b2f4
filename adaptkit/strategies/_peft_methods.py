"""What adaptkit knows of each PEFT method: defaults that learn, where PEFT's do not, and what it works with.

Rates and defaults are starting points, not the outcome of a search: they learned in short runs on four layers of a
sentence encoder (MiniLM on movie reviews; not every method was tried there) and on a tiny decoder, where the tests ask
for it. What a method works with was tried on tiny models of every family and on an NF4 base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from adaptkit.strategy import Capabilities, Family

Kind: TypeAlias = Literal["layers", "adalora", "prompt"]
DECODERS: frozenset[Family] = frozenset({"decoder"})
LAYERS = Capabilities(mergeable=True, can_disable=True, starts_as_base=True)
UNMERGED = Capabilities(can_disable=True, starts_as_base=True)
# Not on a quantised base: they multiply or decompose its weights themselves, add to what a layer returns in place
# (which autograd does not allow where a quantised layer has a bias), or round their own numbers to its integers.
PLAIN = replace(LAYERS, quantized_base=False)
PROMPT = Capabilities(virtual_tokens=True, packing=False, can_disable=True)
# PEFT hands the prefix over as a cache, which transformers does not use while it recomputes activations.
CACHE = Capabilities(families=DECODERS, packing=False, can_disable=True, gradient_checkpointing=False)

NO_PLAN = {"check_meta_device": "PEFT decomposes the weights while it builds the layers, so that they must be there"}
DRAWS = dict.fromkeys(
    ("check_two_runs", "check_micro_batches", "check_packing on llama"), "it draws in every forward pass of a training"
)
ONLY_WITH_CACHE = {"check_generation on llama": "PEFT hands the prefix over as a cache; without one it cannot generate"}


@dataclass(frozen=True)
class Method:
    """What is known of one method.

    Attributes:
        summary: One line for a person.
        rates: Peak learning rate for encoders, and for the other families.
        kind: Who drives it: layers in the model, AdaLoRA's schedule, or tokens in front of the text.
        defaults: In place of PEFT's; ``...``: the recipe must give a value.
        types: In place of those that PEFT annotates.
        targets: The default of ``target_modules``; None: PEFT's own.
        without: Options that are not offered, because nothing here drives what they switch on.
        capabilities: What it works with.
        known_failures: Conformance checks that it cannot pass, with the reasons.
    """

    summary: str
    rates: tuple[float, float]
    kind: Kind = "layers"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    types: Mapping[str, Any] = field(default_factory=dict)
    targets: Literal["all-linear", "all-norms"] | None = "all-linear"
    without: frozenset[str] = frozenset()
    capabilities: Capabilities = LAYERS
    known_failures: Mapping[str, str] = field(default_factory=dict)


# Variants of LoRA that read data first, keep state between steps, add a loss, or rewrite the base.
LORA_VARIANTS = frozenset(
    {
        *("eva_config", "corda_config", "lora_ga_config", "loftq_config", "monteclora_config", "velora_config"),
        *("arrow_config", "kasa_config", "use_bdlora", "alora_invocation_tokens", "use_qalora", "qalora_group_size"),
        *("target_parameters", "trainable_token_indices", "ensure_weight_tying"),
    }
)
LORA_INIT = MappingProxyType({"init_lora_weights": bool | Literal["gaussian", "orthogonal"]})
PROMPT_LENGTH = MappingProxyType({"num_virtual_tokens": 16})
PROMPT_TYPES = MappingProxyType({"num_virtual_tokens": int})

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "lora": Method(
            "LoRA with all of PEFT's options (arXiv:2106.09685).",
            (1e-3, 2e-4),
            defaults={"r": 16, "lora_alpha": 32},
            types=LORA_INIT,
            without=LORA_VARIANTS,
        ),
        "adalora": Method(
            "AdaLoRA: low-rank updates whose rank moves to where it matters (arXiv:2303.10512).",
            (5e-3, 2e-3),
            kind="adalora",
            defaults={"lora_alpha": 32, "tinit": None, "tfinal": None},
            types={"tinit": int | None, "tfinal": int | None, **LORA_INIT},
            without=LORA_VARIANTS | {"r", "use_dora", "rank_pattern"},
        ),
        "adamss": Method(
            "AdaMSS: low-rank updates in subspaces of each weight.",
            (1e-2, 2e-3),
            defaults={"r": 64},
            capabilities=PLAIN,
            known_failures=NO_PLAN,
            # Its allocation between subspaces is driven by a callback of PEFT's.
            without=frozenset(
                {"use_asa", "asa_target_subspaces", "init_warmup", "final_warmup", "mask_interval"}
                | {"asa_importance_beta", "asa_uncertainty_beta", "asa_schedule_exponent"}
            ),
        ),
        "adaption-prompt": Method(
            "LLaMA-Adapter: gated prompts in the upper attention layers (arXiv:2303.16199); Llama, Mistral and GPT-2.",
            (9e-3, 9e-3),
            defaults={"adapter_len": 10, "adapter_layers": 1},
            targets=None,
            capabilities=Capabilities(
                families=DECODERS, packing=False, gradient_checkpointing=False, starts_as_base=True
            ),
        ),
        "beft": Method(
            "BEFT: trains a bias that is added to linear layers (arXiv:2509.15974).",
            (5e-3, 5e-3),
            capabilities=UNMERGED,
        ),
        "boft": Method(
            "BOFT: butterfly-factorised orthogonal rotations of the weights (arXiv:2311.06243).", (2e-3, 5e-4)
        ),
        "c3a": Method(
            "C3A: block-circular convolutions beside linear layers (arXiv:2407.19342).",
            (5e-2, 1e-2),
            defaults={"block_size": 64, "init_weights": True},
            capabilities=PLAIN,
        ),
        "cartridge": Method(
            "CARTRIDGE: trains keys and values of a prefix directly (arXiv:2506.06266).",
            (5e-3, 5e-3),
            kind="prompt",
            defaults=PROMPT_LENGTH,
            types=PROMPT_TYPES,
            capabilities=CACHE,
            known_failures=ONLY_WITH_CACHE,
        ),
        "deft": Method("DEFT: low-rank edits in a learned subspace of the weights.", (2e-3, 5e-4), capabilities=PLAIN),
        "delora": Method(
            "DeLoRA: low-rank updates with a learned, bounded norm (arXiv:2503.18225).",
            (2e-3, 1e-3),
            capabilities=PLAIN,
        ),
        "fourierft": Method(
            "FourierFT: a few coefficients of each update's Fourier transform (arXiv:2405.03003).",
            (2e-2, 1e-2),
            defaults={"init_weights": True},
        ),
        "frod": Method(
            "FRoD: sparse rotations in a basis that layers of one kind share.",
            (5e-3, 2e-3),
            capabilities=PLAIN,
            known_failures=NO_PLAN,
            without=frozenset({"runtime_offload_base_weight"}),
        ),
        "glora": Method(
            "GLoRA: scales and shifts weights and activations (arXiv:2306.07967).", (2e-3, 5e-4), capabilities=PLAIN
        ),
        "gralora": Method(
            "GraLoRA: LoRA in blocks of each weight (arXiv:2505.20355).", (1e-3, 2e-4), capabilities=PLAIN
        ),
        "hira": Method("HiRA: low-rank updates that scale the weights elementwise.", (5e-3, 2e-3)),
        "hra": Method(
            "HRA: chains of Householder reflections of the weights (arXiv:2405.17484).",
            (2e-3, 5e-4),
            capabilities=PLAIN,
        ),
        "ia3": Method(
            "IA3: vectors that scale the outputs of linear layers (arXiv:2205.05638).",
            (1e-2, 3e-3),
            defaults={"feedforward_modules": []},
        ),
        "ln-tuning": Method(
            "Trains the weights of all normalisation layers (arXiv:2312.11420).", (5e-3, 5e-3), targets="all-norms"
        ),
        "loha": Method(
            "LoHa: Hadamard products of low-rank updates (arXiv:2108.06098).", (5e-3, 2e-3), capabilities=PLAIN
        ),
        "lokr": Method("LoKr: Kronecker products as updates (arXiv:2309.14859).", (1e-2, 2e-3), capabilities=PLAIN),
        "miss": Method("MiSS: one shared block of rows as update (arXiv:2409.15371).", (1e-3, 2e-4)),
        "oft": Method("OFT: block-diagonal orthogonal rotations of the weights (arXiv:2306.07280).", (2e-3, 4e-4)),
        "osf": Method(
            "OSF: full fine-tuning outside the leading singular directions of the weights.",
            (2e-4, 5e-5),
            capabilities=PLAIN,
        ),
        "p-tuning": Method(
            "P-tuning: tokens in front of the text, made by a small network (arXiv:2103.10385).",
            (1e-3, 1e-3),
            kind="prompt",
            defaults=PROMPT_LENGTH,
            types=PROMPT_TYPES,
            capabilities=PROMPT,
        ),
        "peanut": Method(
            "PEANuT: small networks of the weights as updates (arXiv:2410.01870).", (1e-3, 2e-4), capabilities=PLAIN
        ),
        "prefix-tuning": Method(
            "PEFT's prefix tuning, for comparison; `prefix-tuning` works on more models (arXiv:2101.00190).",
            (5e-3, 5e-3),
            kind="prompt",
            defaults=PROMPT_LENGTH,
            types=PROMPT_TYPES,
            capabilities=CACHE,
            known_failures=ONLY_WITH_CACHE,
        ),
        "prompt-tuning": Method(
            "Prompt tuning: trained tokens in front of the text (arXiv:2104.08691).",
            (3e-2, 3e-2),
            kind="prompt",
            defaults={**PROMPT_LENGTH, "prompt_tuning_init": "SAMPLE_VOCAB"},
            types=PROMPT_TYPES,
            capabilities=PROMPT,
        ),
        "psoft": Method(
            "PSOFT: orthogonal rotations in the principal subspace of the weights.", (2e-3, 5e-4), capabilities=PLAIN
        ),
        "pvera": Method(
            "PVeRA: VeRA with a distribution over its vectors (arXiv:2512.07703).", (1e-2, 1e-2), known_failures=DRAWS
        ),
        "randlora": Method(
            "RandLoRA: full-rank sums of fixed random low-rank matrices (arXiv:2502.00987).", (1e-3, 2e-4)
        ),
        "road": Method(
            "RoAd: rotations of pairs of outputs (arXiv:2409.00119).", (3e-3, 3e-3), defaults={"group_size": 32}
        ),
        "shira": Method(
            "SHiRA: a sparse, randomly chosen part of each weight (arXiv:2406.13175).",
            (2e-3, 5e-4),
            defaults={"random_seed": 0},
            known_failures={"check_meta_device": "PEFT counts the entries of a drawn mask while it builds the layers"},
        ),
        "supertuning": Method(
            "Trains the largest (or smallest) weights of each layer alone (arXiv:2607.09287).",
            (5e-3, 1e-3),
            capabilities=PLAIN,
        ),
        "tinylora": Method(
            "TinyLoRA: very few numbers that steer fixed random updates (arXiv:2602.04118).",
            (5e-3, 5e-3),
            capabilities=PLAIN,
            known_failures={
                "check_meta_device": "PEFT makes its numbers on the CPU, whatever the device of the layers"
            },
        ),
        "trainable-tokens": Method(
            "Trains the embeddings of the named token ids and nothing else.",
            (1e-3, 1e-3),
            targets=None,
            defaults={"token_indices": ...},
        ),
        "unilora": Method(
            "Uni-LoRA: all updates are projections of one vector (arXiv:2506.00799).",
            (2e-2, 1e-2),
            capabilities=replace(PLAIN, starts_as_base=False),  # Its vector begins with small random numbers.
        ),
        "vblora": Method(
            "VB-LoRA: updates are mixtures of vectors from one bank (arXiv:2405.15179).",
            (5e-3, 5e-3),
            defaults={"vector_length": 64},
            capabilities=replace(LAYERS, starts_as_base=False),  # So does its bank.
        ),
        "vera": Method("VeRA: vectors between random matrices that all layers share (arXiv:2310.11454).", (2e-2, 1e-2)),
        "waveft": Method("WaveFT: a few wavelet coefficients of each update (arXiv:2505.12532).", (1e-2, 5e-3)),
    }
)

UNAVAILABLE: Mapping[str, str] = MappingProxyType(
    {
        "cpt": "its loss also falls on the examples inside its prompt, and every batch must say which of its tokens is "
        "which; choose peft:prompt-tuning",
        "lily": "its router averages over all tokens of a batch, so that what it answers for one text depends on the "
        "others and on their padding; choose lora",
        "multitask-prompt-tuning": "it learns several tasks at once and asks every row for the number of its task, "
        "while a run has one task; choose peft:prompt-tuning",
        "poly": "it learns several tasks at once and asks every row for the number of its task, while a run has one "
        "task; choose lora",
        "shadow": "it trains a second model with a loss of its own, which PEFT adds only inside its own forward pass, "
        "and without that loss parts of it get no gradient; choose lora",
        "xlora": "it mixes LoRA adapters that were trained before, of which a run has none; choose lora",
    }
)
NEWER = "it is newer than this version of adaptkit, and nobody has tried the two together; upgrade adaptkit"
