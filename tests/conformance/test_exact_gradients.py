"""The gradient of an effective batch does not depend on how its rows are cut into micro-batches, padded or packed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import texts
import tiny
import torch
from torch import Tensor

from adaptkit.errors import ModelError
from adaptkit.recipe import parse_recipe
from adaptkit.registry import load_registry
from adaptkit.strategy import Family
from adaptkit.task import IGNORE_INDEX, Features
from adaptkit.training.batches import TrainingBatches
from adaptkit.training.gradient import accumulate_gradient
from adaptkit.training.isolation import check_packing, reads_padding
from adaptkit.training.job import Job

ROWS = 8
ALL_ROWS, SOME_ROWS, ONE_ROW = 10**6, 90, 1  # tokens of a micro-batch
PACKED = 60  # tokens of a sequence
TOLERANCE = 2e-6
WORDS = " ".join(texts.TEXTS).split()
REGISTRY = load_registry()
MANNERS: Mapping[Family, str] = {"encoder": "bert", "decoder": "llama", "encoder-decoder": "t5"}
CLASSES = {"bert": "BertForMaskedLM", "llama": "LlamaForCausalLM", "t5": "T5ForConditionalGeneration"}
TASKS: Mapping[str, dict[str, Any]] = {
    "causal-lm": {"join": False},
    "masked-lm": {"join": False},
    "span-corruption": {"join": False},
    "text-classification": {"head_dropout": 0.0},
}
STRATEGIES: Mapping[str, dict[str, Any]] = {
    **tiny.STRATEGIES,
    "lora": {"r": 4, "lora_dropout": 0.0},
    "qlora": {"r": 4, "lora_alpha": 4, "lora_dropout": 0.0},
    "peft:adalora": {"init_r": 6, "target_r": 2},
    "peft:boft": {},
    "peft:ia3": {},
    "peft:ln-tuning": {},
    "peft:p-tuning": {"num_virtual_tokens": 4},
    "peft:prompt-tuning": {"num_virtual_tokens": 4},
    "peft:vera": {"r": 8},
}
# Of methods whose defaults are too large for these models.
OTHER_OPTIONS: Mapping[str, dict[str, Any]] = {
    "peft:c3a": {"block_size": 8},
    "peft:fourierft": {"n_frequency": 50},
    "peft:miss": {"r": 8},
    "peft:psoft": {"r": 8},
    "peft:road": {"group_size": 8},
    "peft:shira": {"r": 4},
    "peft:trainable-tokens": {"token_indices": list(range(6, 40))},
    "peft:vblora": {"vector_length": 16},
    "peft:waveft": {"n_frequency": 50},
}
Prepare = Callable[..., tuple[Job, Any]]


def served() -> list[Any]:
    """Returns every task with each family that it serves and each strategy that serves both."""
    return [
        pytest.param(task, family, strategy, id=f"{task}, {family}, {strategy}")
        for task, entry in sorted(REGISTRY.tasks.items())
        for family in MANNERS
        for strategy in STRATEGIES
        if family in entry.value.capabilities.families and _serves(strategy, task, family)
    ]


def _serves(strategy: str, task: str, family: Family) -> bool:
    capabilities = REGISTRY.strategy(strategy).capabilities
    return family in capabilities.families and (capabilities.tasks is None or task in capabilities.tasks)


def rows(task: str) -> list[dict[str, Any]]:
    """Returns rows of 2 to 16 words."""
    words = [[WORDS[(5 * row + word) % len(WORDS)] for word in range(2 + 2 * row)] for row in range(ROWS)]
    lines = [" ".join(row) for row in words]
    if task == "text-classification":
        return [{"text": text, "label": "odd" if row % 3 else "even"} for row, text in enumerate(lines)]
    if task == "token-classification":
        return [{"tokens": row, "tags": ["long" if len(word) > 4 else "short" for word in row]} for row in words]
    if task == "seq2seq":
        return [{"source": text, "target": other} for text, other in zip(lines, lines[3:] + lines[:3], strict=True)]
    if task == "sft":
        roles = ("user", "assistant")
        return [{"messages": [{"role": role, "content": text} for role in roles]} for text in lines]
    return [{"text": text} for text in lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a model without dropout for each family, and rows for each task."""
    import transformers

    folder = tmp_path_factory.mktemp("exact")
    for manner, name in CLASSES.items():
        config = texts.config(manner)
        config.classifier_dropout = 0.0
        with torch.random.fork_rng():
            torch.manual_seed(0)
            getattr(transformers, name)(config).save_pretrained(folder / manner)
        texts.tokenizer(manner).save_pretrained(folder / manner)
    for task in REGISTRY.tasks:
        lines = [json.dumps(row) + "\n" for row in rows(task)]
        (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def prepare(folder: Path) -> Prepare:
    """Makes a job, and the recipe that it was made from, whose trained tensors are not where they start."""

    def make(task: str, strategy: str, model: Mapping[str, Any], **training: Any) -> tuple[Job, Any]:
        recipe = parse_recipe(
            {
                "model": {"precision": None if strategy == "qlora" else "fp32", **model},
                "task": {"name": task, **TASKS.get(task, {})},
                "data": {"train": str(folder / f"{task}.jsonl"), "max_length": 64},
                "strategy": {"name": strategy, **STRATEGIES.get(strategy, OTHER_OPTIONS.get(strategy, {}))},
                "training": {"effective_batch": ROWS, "compute": "fp32", **training},
                "output": str(folder / "run"),
            },
            resolver=REGISTRY,
        )
        job, _ = tiny.make_job(recipe)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in job.trainable().values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        return job, recipe

    return make


def features(job: Job) -> list[Features]:
    made: Any = job.batches
    return list(made.features)


def batches(job: Job, recipe: Any, tokens: int, *, packing: bool = False) -> list[dict[str, Tensor]]:
    """Returns the micro-batches of the first step."""
    settings = recipe.training.model_copy(update={"micro_batch_tokens": tokens})
    made: Any = job.batches
    pack_to = PACKED if packing else None
    return TrainingBatches(features(job), job.task, made._tokenizer, settings, pack_to=pack_to).at(0)


def gradient(job: Job, micro_batches: list[dict[str, Tensor]]) -> Tensor:
    """Returns the gradient of all that trains, float64 ``(parameters,)``, as the loop computes it."""
    job.model.zero_grad()
    accumulate_gradient(job, micro_batches, sum(job.task.count(batch) for batch in micro_batches))
    trained = job.trainable().values()
    return torch.cat([parameter.grad.flatten().double() for parameter in trained if parameter.grad is not None])


def assert_exact(job: Job, recipe: Any) -> None:
    """Compares the gradient of one batch with those of every cut, and of packed rows where they are allowed."""
    one_batch = batches(job, recipe, ALL_ROWS)
    assert len(one_batch) == 1
    whole = gradient(job, one_batch)
    some, each = batches(job, recipe, SOME_ROWS), batches(job, recipe, ONE_ROW)
    assert 1 < len(some) < len(each) == ROWS
    cuts = {"some rows": some, "one row": each}
    if job.task.capabilities.packing and job.strategy.capabilities.packing:
        cuts["packed"] = batches(job, recipe, ALL_ROWS, packing=True)
        assert len(cuts["packed"][0]["input_ids"]) < ROWS
    off = {name: float((gradient(job, cut) - whole).norm() / whole.norm()) for name, cut in cuts.items()}
    assert all(share <= TOLERANCE for share in off.values()), off


@pytest.mark.parametrize(("task", "family", "strategy"), served())
def test_the_gradient_is_that_of_a_single_batch(
    task: str, family: Family, strategy: str, folder: Path, prepare: Prepare
) -> None:
    assert_exact(*prepare(task, strategy, {"name": str(folder / MANNERS[family])}))


METHODS = [name for name in REGISTRY.strategies if name.startswith("peft:") and name not in STRATEGIES]


@pytest.mark.parametrize("method", METHODS)
def test_it_is_so_under_every_method_of_peft(method: str, folder: Path, prepare: Prepare) -> None:
    """Once a method: what a task does to its rows does not depend on it."""
    job, recipe = prepare("causal-lm", method, {"name": str(folder / "llama")})
    job.model.eval()  # without what a method draws in training, as PVeRA does
    assert_exact(job, recipe)


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
ARCHITECTURES: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "learned positions": ("causal-lm", "gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "mixture of experts": ("causal-lm", "mixtral", {**SIZES, "num_key_value_heads": 2, "num_local_experts": 4}),
    "sliding windows": ("sft", "gemma2", {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}),
    "recurrent": ("text-classification", "mamba", {"hidden_size": 32, "num_hidden_layers": 2}),
    "cross-attention with absolute positions": (
        "seq2seq",
        "bart",
        {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
    ),
}


def random_base(folder: Path, architecture: str, config: Mapping[str, Any], tokenizer: str = "llama") -> dict[str, Any]:
    return {"name": architecture, "init": "random", "config": dict(config), "tokenizer": str(folder / tokenizer)}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_it_is_so_on_architectures_of_other_kinds(kind: str, folder: Path, prepare: Prepare) -> None:
    task, architecture, config = ARCHITECTURES[kind]
    manner = "t5" if task == "seq2seq" else "llama"
    job, recipe = prepare(task, "full", random_base(folder, architecture, config, manner))
    job.model.eval()  # without the dropout of the architecture's own config
    assert_exact(job, recipe)


def test_the_end_of_a_row_is_found_although_the_config_names_another_padding_token(
    folder: Path, prepare: Prepare
) -> None:
    model = {"name": str(folder / "llama"), "config": {"pad_token_id": 1}}
    assert texts.tokenizer("llama").pad_token_id != 1
    assert_exact(*prepare("text-classification", "full", model))


@pytest.mark.parametrize(("task", "manner"), [("masked-lm", "bert"), ("span-corruption", "t5")])
def test_what_is_drawn_for_a_row_does_not_depend_on_the_cut(
    task: str, manner: str, folder: Path, prepare: Prepare
) -> None:
    job, recipe = prepare(task, "full", {"name": str(folder / manner)})

    def seen(tokens: int) -> list[tuple[list[int], list[int]]]:
        return sorted(
            (ids[mask == 1].tolist(), [label for label in labels.tolist() if label != IGNORE_INDEX])
            for batch in batches(job, recipe, tokens)
            for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
        )

    assert seen(ALL_ROWS) == seen(SOME_ROWS) == seen(ONE_ROW)


# -- what is refused -----------------------------------------------------------------------------------

APART: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "llama": SIZES,
    "mixtral": {**SIZES, "num_key_value_heads": 2, "num_local_experts": 4},
}
MIXED: Mapping[str, Mapping[str, Any]] = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "jamba": {**SIZES, "num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
}
BOTH_ARITHMETICS = pytest.mark.parametrize("compute", ["fp32", "bf16"])


@BOTH_ARITHMETICS
@pytest.mark.parametrize("architecture", APART)
def test_models_that_keep_rows_apart_may_pack_them(
    architecture: str, compute: str, folder: Path, prepare: Prepare
) -> None:
    job, _ = prepare("causal-lm", "lora", random_base(folder, architecture, APART[architecture]), compute=compute)
    check_packing(job.model, features(job), 64, job.numerics)


@BOTH_ARITHMETICS
@pytest.mark.parametrize("architecture", MIXED)
def test_models_that_would_mix_packed_rows_are_refused_before_the_first_step(
    architecture: str, compute: str, folder: Path, prepare: Prepare
) -> None:
    model = random_base(folder, architecture, MIXED[architecture])
    with pytest.raises(ModelError, match="does not keep rows apart") as caught:
        prepare("causal-lm", "full", model, packing=True, compute=compute)
    assert caught.value.problems[0].where == "training.packing"


def test_a_model_that_cannot_be_told_where_a_row_begins_is_refused(folder: Path, prepare: Prepare) -> None:
    job, _ = prepare("causal-lm", "full", {"name": str(folder / "llama")})

    class Counting(torch.nn.Module):
        def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
            return job.model(input_ids=input_ids, use_cache=use_cache)

    with pytest.raises(ModelError, match="takes no position_ids"):
        check_packing(Counting(), features(job), 64, job.numerics)


def test_asking_whether_rows_may_be_packed_leaves_no_trace(folder: Path, prepare: Prepare) -> None:
    job, _ = prepare("causal-lm", "lora", {"name": str(folder / "llama")})
    modes, generator = {module: module.training for module in job.model.modules()}, torch.get_rng_state()
    before = tiny.every_tensor(job.model)
    check_packing(job.model, features(job), 64, job.numerics)
    assert {module: module.training for module in job.model.modules()} == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.every_tensor(job.model).items())
    assert all(parameter.grad is None for parameter in job.model.parameters())


@pytest.mark.parametrize(("architecture", "reads"), [("bert", False), ("fnet", True)])
def test_an_architecture_that_takes_padding_for_text_is_known(
    architecture: str, reads: bool, folder: Path, prepare: Prepare
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    heads = {"num_attention_heads": 4} if architecture == "bert" else {}
    job, _ = prepare("masked-lm", "full", random_base(folder, architecture, {**sizes, **heads}, "bert"))
    made: Any = job.batches
    assert reads_padding(job.model, job.task, features(job), made._tokenizer, job.numerics) == reads


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_rows_and_few_positions_are_no_obstacle(length: int, folder: Path, prepare: Prepare) -> None:
    job, _ = prepare("causal-lm", "full", {"name": str(folder / "llama")})
    check_packing(job.model, [{"input_ids": [5] * length}], length, job.numerics)
