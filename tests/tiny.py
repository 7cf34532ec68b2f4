"""A tiny base model, a tiny data set and tiny recipes, for the tests of whole runs."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptkit.recipe import Precision, Recipe, parse_recipe
from adaptkit.registry import load_registry
from adaptkit.strategy import Strategy
from adaptkit.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from adaptkit.models.building import AdaptedModel
    from adaptkit.models.precision import Numerics
    from adaptkit.training.job import Job

STRATEGIES: dict[str, dict[str, Any]] = {
    "full": {},
    "last-layers": {"num_layers": 1},
    "linear-probe": {},
    "lora": {"r": 4},
    "qlora": {"r": 4, "lora_alpha": 4},
    "prefix-tuning": {"num_virtual_tokens": 4},
}
WORDS = tuple(
    [
        "the",
        "a",
        "film",
        "plot",
        "actor",
        "scene",
        "was",
        "is",
        "good",
        "great",
        "fine",
        "bad",
        "dull",
        "weak",
        "very",
        "quite",
        "and",
        "but",
        "not",
        "so",
    ]
)
GOOD, BAD = WORDS[8:11], WORDS[11:14]
NEUTRAL = WORDS[:8] + WORDS[14:]
STEPS_PER_EPOCH = 6
TRAIN_ROWS, EVALUATION_ROWS, EFFECTIVE_BATCH = 44, 20, 8


def numerics(precision: Precision = "fp32", *, bf16: bool = False) -> Numerics:
    """Returns storage and arithmetic of a model on the CPU."""
    import torch

    from adaptkit.models.precision import Numerics

    return Numerics(torch.device("cpu"), precision, bf16 or precision == "bf16")


def write_model(folder: Path, dropout: float) -> Path:
    """Writes a BERT with random weights (2 layers, hidden 64) and a tokenizer that knows `WORDS`."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    vocabulary = {token: index for index, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
    BertTokenizerFast(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


def write_data(folder: Path) -> dict[str, str]:
    """Writes rows of 2 to 30 words, one row in three bad; one word of each row tells its label."""
    generator = random.Random(0)
    files = {}
    for split, rows in (("train", TRAIN_ROWS), ("evaluation", EVALUATION_ROWS)):
        lines = [json.dumps(_row(generator, "bad" if index % 3 == 0 else "good")) for index in range(rows)]
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def _row(generator: random.Random, label: str) -> dict[str, str]:
    words = generator.choices(NEUTRAL, k=generator.randint(1, 29))
    words.insert(generator.randint(0, len(words)), generator.choice(GOOD if label == "good" else BAD))
    return {"text": " ".join(words), "label": label}


def make_recipe(
    model: Path,
    data: Mapping[str, str | None],
    output: Path,
    strategy: str | Mapping[str, Any],
    task: Mapping[str, Any] | None = None,
    **training: Any,
) -> Recipe:
    """Returns a recipe of three epochs with fp32 arithmetic (a quantised base may decide otherwise).

    Args:
        model: Folder of the base.
        data: The recipe's ``data`` section.
        output: Folder of the run.
        strategy: A name of `STRATEGIES`, or the whole section.
        task: Options of text-classification.
        **training: Changes of the ``training`` section.
    """
    chosen = {"name": strategy, **STRATEGIES[strategy]} if isinstance(strategy, str) else dict(strategy)
    precision = None if chosen["name"] == "qlora" else "fp32"
    return parse_recipe(
        {
            "model": {"name": str(model), "precision": precision},
            "task": {"name": "text-classification", **(task or {})},
            "data": dict(data),
            "strategy": chosen,
            "training": {"effective_batch": EFFECTIVE_BATCH, "compute": "fp32", **training},
            "output": str(output),
        },
        resolver=load_registry(),
    )


def make_job(
    recipe: Recipe, strategy: Strategy[Any] | None = None, optimizer: Callable[..., Optimizer] | None = None
) -> tuple[Job, AdaptedModel]:
    """Returns a job before its first step, as a session makes it, and what it trains.

    Args:
        recipe: Of the run.
        strategy: In place of the recipe's.
        optimizer: Factory, in place of the recipe's.
    """
    from adaptkit import runner
    from adaptkit.models.building import build_model
    from adaptkit.training.evaluation import eval_mode
    from adaptkit.training.preparation import prepare
    from adaptkit.training.rng import preserved_rng
    from adaptkit.training.setup import make_job, use_frozen_features

    registry = load_registry()
    recipe = runner.resolve(recipe, (), registry)
    chosen, task = runner.choose(recipe, registry)
    strategy = strategy or chosen
    splits = runner.check(recipe, strategy, task, registry)
    prepared = prepare(recipe, strategy, task, splits)
    features = prepared.train
    adapted = build_model(recipe, strategy, task, prepared.source, total_steps=STEPS_PER_EPOCH)
    factory = optimizer or registry.optimizer(recipe.training.optimizer)
    job = make_job(adapted, strategy, task, recipe.training, features, factory)
    use_frozen_features(job, adapted, recipe.training, features)
    with eval_mode(job.model), preserved_rng():
        strategy.initialize(job.model, adapted.context, job.batches.at(0))
    return job, adapted


def prepared_task(recipe: Recipe) -> Task[Any]:
    """Returns the recipe's task after it has seen the rows."""
    from adaptkit import runner

    registry = load_registry()
    strategy, task = runner.choose(recipe, registry)
    runner.check(recipe, strategy, task, registry)
    return task


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors that training does not move."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def every_tensor(model: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of all parameters and buffers, and of the quantisation state of packed weights."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "quant_state"):
            state = parameter.quant_state
            packed = state.as_dict(packed=False)
            tensors |= {f"{name}/{key}": value for key, value in packed.items() if hasattr(value, "detach")}
    return copied(tensors)
