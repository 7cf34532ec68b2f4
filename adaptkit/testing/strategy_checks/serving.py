"""What a strategy says it serves: tasks, generation, cached features, virtual tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from adaptkit.testing.check import NotApplicable, check, needs
from adaptkit.testing.strategy_checks.training import STEPS
from adaptkit.testing.subject import Subject
from adaptkit.testing.trial import ALL_TOKENS, Trial, captured
from adaptkit.training.evaluation import inference
from adaptkit.training.gradient import move
from adaptkit.training.setup import use_frozen_features

NEW_TOKENS = 6
CLOSE = 1e-4  # of the loss


@check()
def check_every_task(subject: Subject) -> None:
    """Every built-in task that is declared trains."""
    if not subject.tasks():
        raise NotApplicable("no built-in task for this family is declared")
    for task in subject.tasks():
        loss = subject.trial(task=task).step()[0].loss
        assert math.isfinite(loss), f"{task}: the loss is {loss}"


@check(needs("generates"))
def check_generation(subject: Subject) -> None:
    """It writes with the key-value cache what it writes without, and for a row what it writes beside longer ones."""
    task = next((task for task in ("causal-lm", "seq2seq") if task in subject.tasks()), None)
    if task is None:
        raise NotApplicable("no task that writes is declared for this family")
    trial = subject.trial(task=task).move_away()
    ids = [feature["input_ids"][: 5 + 2 * row] for row, feature in enumerate(trial.prepared.train[:3])]
    together = _written(trial, ids, cache=True)
    assert together == _written(trial, ids, cache=False), "with the key-value cache it writes another text than without"
    for row, prompt in enumerate(ids):
        assert together[row] == _written(trial, [prompt], cache=True)[0], "beside longer rows it writes another text"


def _written(trial: Trial, prompts: list[list[int]], *, cache: bool) -> list[list[int]]:
    """Returns the new tokens of each prompt; the padding stands on the left, for encoder-decoders on the right."""
    model: Any = trial.model
    longest = max(map(len, prompts))
    left = trial.adapted.base.family == "decoder"
    padding = trial.adapted.base.tokenizer.pad_token_id
    rows, masks = [], []
    for prompt in prompts:
        fill, ones = [padding] * (longest - len(prompt)), [1] * len(prompt)
        rows.append(fill + prompt if left else prompt + fill)
        masks.append([0] * len(fill) + ones if left else ones + [0] * len(fill))
    inputs = move(
        {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}, trial.adapted.numerics.device
    )
    with inference(trial.model, trial.adapted.numerics):
        new: Tensor = model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, use_cache=cache
        )
    return [row.tolist() for row in new[:, -NEW_TOKENS:]]


@check()
def check_frozen_features(subject: Subject) -> None:
    """Training on cached features of the frozen part ends where training through the whole model does."""
    trial, whole = subject.trial(), subject.trial(cache_frozen_features=False)
    if trial.strategy.frozen_features(trial.model) is None:
        raise NotApplicable("no frozen part is named")
    cached, _ = (
        use_frozen_features(one.job, one.adapted, one.recipe.training, one.prepared.train, one.prepared.evaluation)
        for one in (trial, whole)
    )
    if not cached:
        raise NotApplicable("its features cannot be cached here")
    trial.step(STEPS)
    whole.step(STEPS)
    found, wanted = trial.evaluate()["loss"], whole.evaluate()["loss"]
    assert abs(found - wanted) <= CLOSE * abs(wanted), f"with cached features the loss is {found:.5f}, not {wanted:.5f}"


@check()
def check_virtual_tokens(subject: Subject) -> None:
    """Logits are as many as tokens, or as many more as the virtual tokens that are declared."""
    if (task := next((one for one in ("causal-lm", "masked-lm") if one in subject.tasks()), None)) is None:
        raise NotApplicable("no task with one label a token is declared for this family")
    trial = subject.trial(task=task)
    batch = move(trial.batches(ALL_TOKENS)[0], trial.adapted.numerics.device)
    with inference(trial.model, trial.adapted.numerics), captured(trial.model) as outputs:
        trial.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    more = outputs[0].shape[1] - batch["input_ids"].shape[1]
    if subject.capabilities.virtual_tokens:
        wanted = subject.make().extra_positions()
        assert more == wanted, f"{more} logits more than tokens, but extra_positions() is {wanted}"
    else:
        assert more == 0, f"{more} logits more than tokens; declare virtual_tokens, and name them in extra_positions()"
