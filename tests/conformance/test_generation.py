"""What an adapted model writes for a text is what it writes for that text alone, whatever stands beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adaptkit.registry import load_registry
from adaptkit.tasks._generation import generate
from benchmarks.cells import FAMILIES, Cell, Trials, prepare_trial

TASKS = {"decoder": "sft", "encoder-decoder": "seq2seq"}
STRATEGIES = {name: entry.value.capabilities for name, entry in load_registry().strategies.items()}
# Those that change what stands in front of a text, or how attention is computed; one that does neither.
NAMES = [name for name in STRATEGIES if STRATEGIES[name].virtual_tokens]
NAMES += ["lora", "prefix-tuning", "peft:adaption-prompt"]
CASES = [(name, family) for name in NAMES for family in FAMILIES if family in TASKS.keys() & STRATEGIES[name].families]
TOKENS = 8


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(tmp_path_factory.mktemp("generation"))


def stirred(model: Any) -> Any:
    """Returns the model in eval mode with large random numbers in all that trains, so that it matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize(("strategy", "family"), CASES)
def test_a_text_does_not_depend_on_a_longer_one_beside_it(trials: Trials, strategy: str, family: Any) -> None:
    trial = prepare_trial(trials.recipe(Cell(strategy, family, TASKS[family], "fp32")), trials.registry)
    model, tokenizer = stirred(trial.job.model), trial.adapted.base.tokenizer
    ids = torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    alone = {"input_ids": ids[:1, :4], "attention_mask": mask[:1, :4]}
    kind = trial.task.kind
    with torch.no_grad():
        together = generate(model, batch, tokenizer, TOKENS, kind)[0]
        assert together == generate(model, alone, tokenizer, TOKENS, kind)[0]
    assert len(together) > 1


@pytest.mark.parametrize("strategy", [name for name, family in CASES if family == "decoder"])
def test_each_token_is_the_likeliest_behind_those_before_it(trials: Trials, strategy: str) -> None:
    trial = prepare_trial(trials.recipe(Cell(strategy, "decoder", "sft", "fp32")), trials.registry)
    model, tokenizer = stirred(trial.job.model), trial.adapted.base.tokenizer
    ids = torch.randint(5, 200, (1, 6), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        written = generate(
            model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, tokenizer, TOKENS, "causal"
        )[0]
        for token in written:
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
            assert int(logits.argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


@pytest.mark.parametrize("strategy", [name for name, family in CASES if family == "decoder"])
def test_no_text_is_written_beyond_the_last_position(trials: Trials, strategy: str) -> None:
    trial = prepare_trial(trials.recipe(Cell(strategy, "decoder", "sft", "fp32")), trials.registry)
    model, tokenizer = stirred(trial.job.model), trial.adapted.base.tokenizer
    ids = torch.randint(5, 200, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (written,) = generate(
            model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, tokenizer, 1000, "causal"
        )
    assert 40 + trial.strategy.extra_positions() + len(written) <= trial.adapted.source.positions
