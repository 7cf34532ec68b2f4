"""Models, strategies and options that do not go with a task: one error, as early as it can be known.

No base here has weights, so nothing is found late that could be found early: validation sees a config alone, and
what needs the tokenizer is seen with config and tokenizer.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_tasks import Case, check_case, write_case
from in_process import CommandLine

# -- what the recipe shows, without torch ------------------------------------------------------------------


def pickled(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    (path / "pytorch_model.bin").write_bytes(b"")


def begun(path: Path) -> None:
    path.mkdir()
    (path / "recipe.yaml").write_text("model: bert\n", encoding="utf-8")


KNOWN_AT_ONCE = {
    "chat on an encoder": Case(
        "sft", "does not work with encoder models", "model.name", "decoder", "masked-lm", 2, recipe={"model": "bert"}
    ),
    "translation on a decoder": Case(
        "seq2seq",
        "does not work with decoder models",
        "model.name",
        "T5",
        "causal-lm, sft",
        2,
        recipe={"model": "gpt2"},
    ),
    "masks on an encoder-decoder": Case(
        "masked-lm", "with encoder-decoder models", "model.name", "BERT", "span-corruption", 2, recipe={"model": "t5"}
    ),
    "a probe of a language model": Case(
        "causal-lm",
        "does not serve the task",
        "strategy.name",
        "text-classification",
        code=2,
        recipe={"strategy": "linear-probe"},
    ),
    "packed classification": Case(
        "text-classification",
        "does not allow packing",
        "training.packing",
        fix="false",
        code=2,
        recipe={"training": {"packing": True}},
    ),
    "packed prompt tuning": Case(
        "causal-lm",
        "'peft:prompt-tuning' does not allow packing",
        "training.packing",
        code=2,
        recipe={"strategy": "peft:prompt-tuning", "training": {"packing": True}},
    ),
    "random weights in four bits": Case(
        "causal-lm",
        "random weights cannot be stored as nf4",
        "model.precision",
        "fp32, bf16",
        "strategy: full",
        2,
        recipe={"model": {"name": "gpt2", "init": "random", "precision": "nf4"}},
    ),
    "random weights under qlora": Case(
        "causal-lm",
        "random weights cannot be stored as nf4",
        "strategy.name",
        code=2,
        recipe={"model": {"name": "gpt2", "init": "random"}, "strategy": "qlora"},
    ),
    # models and names
    "an unknown architecture": Case(
        "causal-lm",
        "there is no architecture 'gpt22'",
        "model.name",
        fix="did you mean 'gpt2'?",
        code=2,
        recipe={"model": {"name": "gpt22", "init": "random", "tokenizer": {"vocab_size": 300}}},
    ),
    "an architecture without a tokenizer": Case(
        "causal-lm",
        "'opt' is an architecture, which has no tokenizer",
        "model.tokenizer",
        fix="tokenizer: {vocab_size: 8000}",
        code=2,
        recipe={"model": {"name": "opt", "init": "random"}},
    ),
    "a new tokenizer for old weights": Case(
        "causal-lm",
        "would mean nothing to pretrained weights",
        "recipe.yaml:",
        code=2,
        recipe={"model": {"name": "gpt2", "tokenizer": {"vocab_size": 300}}},
    ),
    "a tokenizer that is not there": Case(
        "causal-lm",
        "no folder './gpt3'",
        "model.tokenizer",
        fix="did you mean 'gpt2'?",
        code=2,
        recipe={"model": {"name": "gpt2", "tokenizer": "./gpt3"}},
    ),
    "a run that is not finished": Case(
        "masked-lm",
        "holds no model",
        "begun",
        "a run that is finished",
        "--resume",
        2,
        recipe={"model": "begun"},
        files={"begun": begun},
    ),
    "weights that are a pickle": Case(
        "masked-lm",
        "a pickle",
        "pickled/pytorch_model.bin",
        "*.safetensors",
        "save_pretrained",
        2,
        recipe={"model": "pickled"},
        files={"pickled": pickled},
    ),
    "a mixture of adapters": Case(
        "masked-lm", "'peft:xlora' cannot be used", "recipe.yaml:", code=2, recipe={"strategy": "peft:xlora"}
    ),
    "an unknown method of PEFT": Case(
        "masked-lm",
        "unknown strategy 'peft:adaloro'",
        "recipe.yaml:",
        "peft:ia3",
        "'peft:adalora'?",
        2,
        recipe={"strategy": "peft:adaloro"},
    ),
    "a method of PEFT without its prefix": Case(
        "masked-lm",
        "unknown strategy 'ia3'",
        "recipe.yaml:",
        fix="did you mean 'peft:ia3'?",
        code=2,
        recipe={"strategy": "ia3"},
    ),
    "a task by the name that it has elsewhere": Case(
        "summarization", "unknown task 'summarization'", "recipe.yaml:", "seq2seq", "did you mean 'seq2seq'?", 2
    ),
    "an option of a method, of the wrong type": Case(
        "masked-lm",
        "strategy.r must be a whole number",
        "recipe.yaml:",
        code=2,
        recipe={"strategy": {"name": "peft:lora", "r": "many"}},
    ),
    "an option that a method does not have": Case(
        "masked-lm",
        "unknown key 'ranks'",
        "recipe.yaml:",
        "vera_dropout",
        code=2,
        recipe={"strategy": {"name": "peft:vera", "ranks": 3}},
    ),
    "an option of another task": Case(
        {"name": "sft", "pooling": "cls"}, "unknown key 'pooling' in task", "recipe.yaml:", "max_new_tokens", code=2
    ),
    "an unknown metric": Case(
        {"name": "seq2seq", "metrics": ["blue"]},
        "unknown metric 'blue'",
        "recipe.yaml:",
        "chrf",
        "did you mean 'bleu'?",
        2,
    ),
    "no beam": Case(
        {"name": "seq2seq", "num_beams": 0}, "task.num_beams must be", "recipe.yaml:", "at least 1", code=2
    ),
    "no token to generate": Case(
        {"name": "causal-lm", "max_new_tokens": 0}, "task.max_new_tokens must be", "recipe.yaml:", "at least 1", code=2
    ),
    "masks in per cent": Case(
        {"name": "masked-lm", "mask_probability": 15}, "must be less than 1, found 15", "recipe.yaml:", code=2
    ),
    "a template that is not there": Case(
        {"name": "sft", "chat_template": "llama.jinja"}, "cannot be read", "task.chat_template", "chatml", "the path", 2
    ),
}


@pytest.mark.usefixtures("no_heavy_imports")
@pytest.mark.parametrize("case", KNOWN_AT_ONCE.values(), ids=KNOWN_AT_ONCE)
def test_what_the_recipe_shows_is_found_by_validation_without_torch(
    case: Case, configs: Path, cli: CommandLine
) -> None:
    write_case(case, configs)
    check_case(case, cli, "validate", "preview", "run")


@pytest.mark.usefixtures("no_heavy_imports")
def test_a_run_that_ends_while_the_libraries_load_leaves_nothing_behind(
    configs: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_case(Case("causal-lm", ""), configs)
    monkeypatch.setitem(sys.modules, "adaptkit.session", None)
    assert cli("run", "recipe.yaml").code == 1
    assert not (configs / "out").exists()


# -- what tokenizer and config of the base show ---------------------------------------------------------


def copied(
    base: str, *, tokenizer_of: str | None = None, without: str = "", **config: object
) -> Callable[[Path], object]:
    """Returns what copies a base: perhaps with another tokenizer, without a special token, or with another config."""

    def make(path: Path) -> None:
        shutil.copytree(base, path)
        for file in Path(tokenizer_of or base).glob("tokenizer*"):
            shutil.copy(file, path)
        for name, values in (("tokenizer_config.json", {without: None}), ("config.json", config)):
            kept = {**json.loads((path / name).read_text(encoding="utf-8")), **values}
            text = json.dumps({key: value for key, value in kept.items() if value is not None})
            (path / name).write_text(text, encoding="utf-8")

    return make


def emptied(base: str, pattern: str, content: str | None = None) -> Callable[[Path], object]:
    """Returns what copies a base with some of its files removed, or replaced by other text."""

    def make(path: Path) -> None:
        shutil.copytree(base, path)
        for file in path.glob(pattern):
            file.unlink() if content is None else file.write_text(content, encoding="utf-8")

    return make


def random(**changes: object) -> dict[str, Any]:
    return {"model": {"name": "gpt2", "init": "random", **changes}}


ODD = {"model": "odd"}
KNOWN_BEFORE_THE_WEIGHTS = {
    # lengths
    "rows longer than the model": Case(
        "causal-lm",
        "data.max_length is 4000, but 'gpt2' takes 128 tokens",
        "data.max_length",
        "1 to 128",
        "or leave it out",
        2,
        recipe={"data": {"max_length": 4000}},
    ),
    "blocks longer than the model": Case(
        {"name": "causal-lm", "block": 999}, "a block of 999 tokens", "task.block", "2 to 128", "lower it", 2
    ),
    "no room for a token": Case(
        "text-classification",
        "leaves no room",
        "data.max_length",
        "at least 3",
        code=2,
        recipe={"data": {"max_length": 2}},
    ),
    "a target longer than the model": Case(
        {"name": "seq2seq", "max_target_length": 4000},
        "task.max_target_length is 4,000",
        "task.max_target_length",
        code=2,
    ),
    "virtual tokens that leave no room": Case(
        "causal-lm",
        "takes 200 positions for itself, but 'gpt2' has 128",
        "strategy",
        "fewer than 128",
        "num_virtual_tokens",
        2,
        recipe={"strategy": {"name": "peft:prompt-tuning", "num_virtual_tokens": 200}},
    ),
    "answers that the cut leaves nothing of": Case(
        "sft",
        "of 8 none is left for the answer",
        "train.jsonl:1",
        "before the answer",
        "raise data.max_length",
        recipe={"data": {"max_length": 8}},
    ),
    # tokens
    "the tokenizer of another model in the folder": Case(
        "text-classification",
        "but the base has embeddings for 120 tokens",
        "odd",
        "ids below 120",
        "belongs to the model",
        2,
        recipe=ODD,
        files={"odd": copied("bert", tokenizer_of="gpt2")},
    ),
    "the tokenizer of another model by name": Case(
        "text-classification",
        "is not one for the weights of 'bert'",
        "model.tokenizer",
        fix="leave model.tokenizer out",
        code=2,
        recipe={"model": {"name": "bert", "tokenizer": "./gpt2"}},
    ),
    "new tokens that are known": Case(
        "text-classification",
        "'sea' is in the vocabulary already",
        "model.new_tokens",
        fix="take it off the list",
        code=2,
        recipe={"model": {"name": "bert", "new_tokens": ["sea", "⚓"]}},
    ),
    "no tokenizer": Case(
        "causal-lm",
        "holds no tokenizer",
        "odd",
        "tokenizer.json",
        "model.tokenizer",
        2,
        recipe=ODD,
        files={"odd": emptied("gpt2", "tokenizer*")},
    ),
    "a damaged tokenizer": Case(
        "causal-lm",
        "the tokenizer 'odd' cannot be loaded",
        "odd",
        fix="missing or damaged",
        code=2,
        recipe=ODD,
        files={"odd": emptied("gpt2", "tokenizer.json", "{")},
    ),
    "neither padding nor end": Case(
        "causal-lm",
        "neither a padding nor an end token",
        "odd",
        "pad_token",
        "tokenizer_config.json",
        2,
        recipe=ODD,
        files={
            "odd": lambda path: (
                copied("llama", without="eos_token")(path.with_name("half")),
                copied("half", without="pad_token")(path),
            )
        },
    ),
    "chat without an end": Case(
        "sft",
        "never learn to stop",
        "task.chat_template",
        "{{ eos_token }}",
        "eos_token",
        2,
        recipe=ODD,
        files={"odd": copied("llama", without="eos_token")},
    ),
    "a template whose tokens are unknown": Case(
        {"name": "sft", "chat_template": "chatml"},
        "never learn to stop",
        "task.chat_template",
        fix="new_tokens",
        code=2,
        recipe={"model": "llama"},
    ),
    "a template that is broken": Case(
        {"name": "sft", "chat_template": "odd.jinja"},
        "cannot be used",
        "task.chat_template",
        fix="correct the template",
        code=2,
        files={"odd.jinja": lambda path: path.write_text("{% for message in messages %}{{ message.role }")},
    ),
    "targets without an end": Case(
        "seq2seq",
        "could not learn to stop",
        "model.name",
        "T5",
        "tokenizer_config.json",
        2,
        recipe=ODD,
        files={"odd": copied("t5", without="eos_token")},
    ),
    "no mask": Case(
        "masked-lm",
        "has no mask token",
        "model.name",
        "BERT",
        code=2,
        recipe=ODD,
        files={"odd": copied("bert", without="mask_token")},
    ),
    "no sentinels": Case(
        "span-corruption",
        "has no sentinel tokens",
        "model.name",
        "T5",
        "new_tokens",
        2,
        recipe=ODD,
        files={"odd": copied("t5", tokenizer_of="llama")},
    ),
    # configs
    "a damaged config": Case(
        "causal-lm",
        "not a valid JSON file",
        "odd",
        fix="missing or damaged",
        code=2,
        recipe=ODD,
        files={"odd": emptied("gpt2", "config.json", "{")},
    ),
    "a type that transformers does not have": Case(
        "causal-lm",
        "model type `nosuch`",
        "odd",
        fix="upgrade transformers",
        code=2,
        recipe=ODD,
        files={"odd": copied("gpt2", model_type="nosuch")},
    ),
    "a model with code of its own": Case(
        "causal-lm",
        "code of its own, which is never run",
        "odd",
        code=2,
        recipe=ODD,
        files={"odd": copied("gpt2", model_type="nosuch", auto_map={"AutoConfig": "own.Config"})},
    ),
    "an unknown key of the config": Case(
        "causal-lm",
        "no value 'hidden_sise'",
        "model.config.hidden_sise",
        "n_embd",
        "did you mean 'hidden_size'?",
        2,
        recipe=random(config={"hidden_sise": 64}),
    ),
    "a word for a size": Case(
        "causal-lm", "'n_embd' expected int", "model.config.n_embd", code=2, recipe=random(config={"n_embd": "big"})
    ),
    "sizes that make no model": Case(
        "causal-lm",
        "the config makes no model",
        "model.config",
        fix="multiple",
        code=2,
        recipe=random(config={"n_embd": 33}),
    ),
    "no layers": Case(
        "causal-lm", "-1 layers", "model.config.n_layer", "1 or more", code=2, recipe=random(config={"n_layer": -1})
    ),
    "another shape for old weights": Case(
        "causal-lm",
        "changes the shape of pretrained weights",
        "model.config.n_embd",
        fix="model.init to random",
        code=2,
        recipe=random(config={"n_embd": 64}, init="pretrained"),
    ),
    "a vocabulary without room for the bytes": Case(
        "causal-lm",
        "a vocabulary of 100 is too small",
        "vocab_size",
        "258 or more",
        code=2,
        recipe=random(tokenizer={"vocab_size": 100}),
    ),
}


@pytest.mark.parametrize("case", KNOWN_BEFORE_THE_WEIGHTS.values(), ids=KNOWN_BEFORE_THE_WEIGHTS)
def test_what_config_and_tokenizer_show_is_found_before_the_weights(
    case: Case, base_folder: Path, cli: CommandLine
) -> None:
    write_case(case, base_folder)
    check_case(case, cli, "preview", "run")


# -- what only the model shows --------------------------------------------------------------------------

RANDOM = {"name": "gpt2", "init": "random"}
KNOWN_WITH_THE_MODEL = {
    "a rank that PEFT rejects": Case(
        "causal-lm",
        "should be a positive integer",
        "strategy",
        code=2,
        recipe={"model": RANDOM, "strategy": {"name": "peft:lora", "r": 0}},
    ),
    "options that PEFT rejects": Case(
        "causal-lm",
        "PEFT does not accept the options of peft:boft",
        "strategy.boft_block_size",
        fix="adaptkit strategies peft:boft",
        code=2,
        recipe={"model": RANDOM, "strategy": {"name": "peft:boft", "boft_block_size": 4, "boft_block_num": 4}},
    ),
    "modules that the model does not have": Case(
        "causal-lm",
        "'nosuch'",
        "strategy.target_modules",
        "c_attn",
        code=2,
        recipe={"model": RANDOM, "strategy": {"name": "lora", "target_modules": ["nosuch"]}},
    ),
    "more layers than there are": Case(
        "causal-lm",
        "has 2 blocks",
        "strategy.num_layers",
        "1 to 2",
        code=2,
        recipe={"model": RANDOM, "strategy": {"name": "last-layers", "num_layers": 99}},
    ),
    "a model without weights": Case(
        "causal-lm", "no file named model.safetensors", "gpt2", "*.safetensors", "missing or damaged", 2
    ),
}


@pytest.mark.parametrize("case", KNOWN_WITH_THE_MODEL.values(), ids=KNOWN_WITH_THE_MODEL)
def test_what_only_the_model_shows_is_one_error_and_leaves_nothing_behind(
    case: Case, base_folder: Path, cli: CommandLine
) -> None:
    write_case(case, base_folder)
    check_case(case, cli, "run")


@pytest.mark.parametrize("strategy", ["peft:prompt-tuning", "prefix-tuning"])
def test_a_run_that_cannot_become_a_base_is_refused_by_validation(
    strategy: str, base_folder: Path, cli: CommandLine
) -> None:
    model = {"name": "bert", "init": "random"}
    write_case(
        Case("text-classification", "", recipe={"model": model, "strategy": strategy, "output": "first"}), base_folder
    )
    assert cli("run", "recipe.yaml").code == 0
    found = "cannot be the base of another one"
    fix = "start from its own base, model: bert"
    case = Case(
        "masked-lm", found, "model.name", "a run of a strategy that can be merged: ", fix, 2, recipe={"model": "first"}
    )
    write_case(case, base_folder)
    check_case(case, cli, "validate", "preview", "run")
