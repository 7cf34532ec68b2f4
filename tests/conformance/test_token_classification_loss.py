"""The gradient of an effective batch of tagged words, in every family and under every strategy."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import texts
import tiny
import torch
from torch import Tensor

from adaptkit.models.heads.token_classifier import load_token_classifier
from adaptkit.recipe import Recipe
from adaptkit.task import Row, Splits
from adaptkit.tasks.token_classification import TokenClassification, TokenClassificationOptions
from adaptkit.training.loop import train_step

MakeRecipe = Callable[..., Recipe]


def tagged(generator: random.Random) -> dict[str, list[str]]:
    """Returns words, those that judge with a tag of their own."""
    tokens = generator.choices(tiny.WORDS, k=generator.randint(1, 20))
    tags = ["B-good" if word in tiny.GOOD else "B-bad" if word in tiny.BAD else "O" for word in tokens]
    return {"tokens": tokens, "tags": tags}


@pytest.fixture(scope="module")
def tagged_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    generator, folder, files = random.Random(0), tmp_path_factory.mktemp("tagged"), {}
    for split, rows in (("train", tiny.TRAIN_ROWS), ("evaluation", tiny.EVALUATION_ROWS)):
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(tagged(generator)) + "\n" for _ in range(rows)), encoding="utf-8")
        files[split] = str(path)
    return files


class GradientRecorder(torch.optim.SGD):
    """Moves nothing and keeps the gradient, ``(trainable parameters,)``."""

    def __init__(self, groups: list[dict[str, Any]], settings: object) -> None:
        super().__init__(groups)
        self.gradient = torch.empty(0)

    def step(self, closure: Any = None) -> Any:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])


@pytest.mark.parametrize("strategy", tiny.STRATEGIES)
def test_the_gradient_does_not_depend_on_the_cut_under_any_strategy(
    strategy: str, recipe: MakeRecipe, tagged_data: dict[str, str], tiny_bert_without_dropout: Path
) -> None:
    options = {"name": strategy, **tiny.STRATEGIES[strategy], **({"lora_dropout": 0.0} if "lora" in strategy else {})}

    def cut(tokens: int) -> tuple[Tensor, int, bool]:
        job, _ = tiny.make_job(
            recipe(
                options,
                model=tiny_bert_without_dropout,
                data=tagged_data,
                task={"name": "token-classification"},
                micro_batch_tokens=tokens,
                max_grad_norm=None,
            ),
            optimizer=GradientRecorder,
        )
        passes = len(job.batches.at(0))
        train_step(job)
        return job.optimizer.optimizer.gradient, passes, job.numerics.bf16

    whole, passes, bf16 = cut(10**6)
    assert passes == 1
    assert whole.norm() > 0
    tolerance = 2e-2 if bf16 else 2e-6  # a quantised base computes in bf16 where the device is fast at it
    for tokens in (1, 40):
        part, passes, _ = cut(tokens)
        assert passes > 1
        assert (whole - part).norm() / whole.norm() <= tolerance


def loaded(manner: str) -> tuple[Any, TokenClassification, list[dict[str, Any]]]:
    """Returns a model without dropout, its task, and features of rows of different lengths."""
    words = [line.split() for line in texts.TEXTS]
    values = [
        {"tokens": line, "tags": [str(len(word) % 3) for word in line]} for line in [*words, *(w[:2] for w in words)]
    ]
    rows = [Row(value, "") for value in values]
    task = TokenClassification(TokenClassificationOptions(name="token-classification"))
    task.prepare(Splits(rows), texts.DATA)
    source = texts.source(manner, classifier_dropout=0.0)
    base = load_token_classifier(source, numerics=tiny.numerics(), seed=0, labels=task.tags)
    return base, task, task.features(rows, texts.DATA, source.tokenizer, 128)


@pytest.mark.parametrize("manner", texts.FAMILIES)
def test_the_gradient_does_not_depend_on_the_cut_in_any_family(manner: str) -> None:
    base, task, features = loaded(manner)
    whole = task.count(task.collate(features, base.tokenizer))

    def gradient(*sizes: int) -> Tensor:
        base.module.zero_grad()
        rest = list(features)
        for size in sizes:
            part, rest = rest[:size], rest[size:]
            (task.loss(base.module, task.collate(part, base.tokenizer)).total / whole).backward()
        gradients = [parameter.grad for parameter in base.module.parameters() if parameter.grad is not None]
        return torch.cat([gradient.flatten() for gradient in gradients]).clone()

    once = gradient(8)
    assert once.norm() > 0
    for cut in ((1,) * 8, (3, 5), (4, 4)):
        assert (gradient(*cut) - once).norm() / once.norm() <= 2e-6


@pytest.mark.parametrize("manner", texts.FAMILIES)
def test_tags_do_not_depend_on_padding_in_any_family(manner: str) -> None:
    base, task, features = loaded(manner)
    short, long = features[-1], features[0]
    assert len(short["input_ids"]) < len(long["input_ids"])

    def logits(*rows: dict[str, Any]) -> Tensor:
        batch = task.collate(rows, base.tokenizer)
        with torch.no_grad():
            found: Tensor = base.module.eval()(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
        return found[0, : len(short["input_ids"])]

    torch.testing.assert_close(logits(short), logits(short, long), rtol=0, atol=1e-5)


@pytest.mark.parametrize("manner", texts.FAMILIES)
def test_a_new_head_begins_near_the_loss_of_guessing(manner: str) -> None:
    base, task, features = loaded(manner)
    batch = task.collate(features, base.tokenizer)
    loss = task.loss(base.module, batch).total.item() / task.count(batch)
    assert loss < 2 * math.log(len(task.tags))
