"""New tokens: rows of their own that train under every strategy beside a base that stays as it is."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import adaptkit
from adaptkit.errors import ModelError
from adaptkit.models.base.loading import load_model
from adaptkit.models.base.new_tokens import fold, new_row_parameters
from adaptkit.models.base.source import ModelSource, open_source
from adaptkit.recipe import ModelSpec, Recipe
from adaptkit.training.loop import training_steps

NEW = ["<drug>", "greatbad"]
EVERY_STRATEGY = pytest.mark.parametrize("strategy", tiny.STRATEGIES)
TEXTS = ["a small film of great words", "many words, and a great many more", "so small a plot"] * 5
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SEQ2SEQ = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "decoder_attention_heads": 2}
# Tied and untied output layers, with a bias and without, scaled embeddings, several tied embeddings, a bias on top.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("AutoModelForMaskedLM", SIZES),
    "gpt2": ("AutoModelForCausalLM", SIZES),
    "llama": ("AutoModelForCausalLM", {**SIZES, "num_key_value_heads": 1}),
    "gemma2": ("AutoModelForCausalLM", {**SIZES, "num_key_value_heads": 1, "head_dim": 16}),
    "t5": ("AutoModelForSeq2SeqLM", {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_kv": 16, "d_ff": 64}),
    "bart": ("AutoModelForSeq2SeqLM", {**SEQ2SEQ, "scale_embedding": True, "encoder_attention_heads": 2}),
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)


# -- the layers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns the folder of a language model with random weights and a tokenizer; ``folder("gpt2")``."""
    made: dict[str, Path] = {}

    def folder(name: str, **config: Any) -> Path:
        key = f"{name}-{config}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp(name) / "model"
            write(made[key], name, {**MODELS.get(name, ("", SIZES))[1], **config})
        return made[key]

    return folder


def write(folder: Path, name: str, config: dict[str, Any]) -> None:
    spec = ModelSpec(name=name, init="random", config=config, tokenizer={"vocab_size": 400})
    source = open_source(spec, texts=lambda: TEXTS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = load(source, name)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)


def load(source: ModelSource, name: str, precision: Any = "fp32") -> Any:
    import transformers

    auto_class = MODELS.get(name, ("AutoModelForMaskedLM", {}))[0]
    return load_model(getattr(transformers, auto_class), source, tiny.numerics(precision))[0].eval()


def extended(folder: Path, tokens: list[str] | None = None) -> ModelSource:
    return open_source(ModelSpec(name=str(folder), new_tokens=NEW if tokens is None else tokens))


def logits(model: Any, ids: list[int]) -> Tensor:
    inputs = {"input_ids": torch.tensor([ids])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    result: Tensor = model(**inputs).logits
    return result


@EVERY_MODEL
def test_what_the_base_says_of_its_own_tokens_stays(name: str, folders: Any) -> None:
    folder = folders(name)
    plain, model = load(extended(folder, []), name), load(extended(folder), name)
    ids = extended(folder, [])
    read = ids.tokenizer(TEXTS[0]).input_ids
    before, after = logits(plain, read), logits(model, read)
    assert after.shape[-1] == before.shape[-1] + len(NEW)
    torch.testing.assert_close(after[..., : before.shape[-1]], before)
    own = dict(model.named_parameters())
    assert all(torch.equal(parameter, own[key]) for key, parameter in plain.named_parameters())


@EVERY_MODEL
def test_a_new_token_begins_as_the_mean_of_what_its_text_was_read_as(name: str, folders: Any) -> None:
    source = extended(folders(name), ["greatplot"])
    model = load(source, name)
    pieces = list(source.new_tokens.pieces[0])
    assert len(pieces) > 1
    embed = model.get_input_embeddings()
    rows = embed(torch.tensor([*pieces, source.new_tokens.first]))
    torch.testing.assert_close(rows[-1], rows[:-1].mean(0))
    says = logits(model, source.tokenizer(TEXTS[0]).input_ids)
    if not getattr(model.config, "final_logit_softcapping", None):  # Gemma bends its logits afterwards
        torch.testing.assert_close(says[..., source.new_tokens.first], says[..., pieces].mean(-1), rtol=1e-4, atol=1e-4)
    assert (says[..., source.new_tokens.first] <= says[..., pieces].amax(-1) + 1e-5).all()


@EVERY_MODEL
def test_input_and_output_rows_learn_and_tied_ones_are_one(name: str, folders: Any) -> None:
    source = extended(folders(name))
    model = load(source, name).requires_grad_(False)
    new = new_row_parameters(model)
    for key in new:
        model.get_parameter(key).requires_grad_(True)
    logits(model, source.tokenizer("a <drug> greatbad film").input_ids).square().mean().backward()
    assert all(bool(model.get_parameter(key).grad.abs().sum(-1).all()) for key in new)
    assert all(parameter.grad is None for key, parameter in model.named_parameters() if key not in new)
    output, embed = model.get_output_embeddings(), model.get_input_embeddings()
    assert (output.new_rows is embed.new_rows.weight) == (output.weight is embed.weight)
    assert sum(len(model.get_parameter(key).shape) == 2 for key in new) == (1 if output.weight is embed.weight else 2)


@EVERY_MODEL
def test_folded_in_they_are_an_ordinary_model_that_says_the_same(name: str, folders: Any, tmp_path: Path) -> None:
    source = extended(folders(name))
    model = load(source, name)
    for key in new_row_parameters(model):
        nn.init.normal_(model.get_parameter(key), std=0.3)
    ids = source.tokenizer("a <drug> greatbad film").input_ids
    with torch.no_grad():
        before = logits(model, ids)
        fold(model)
        torch.testing.assert_close(logits(model, ids), before)
        assert not new_row_parameters(model)
        model.save_pretrained(tmp_path / "model")
        source.tokenizer.save_pretrained(tmp_path / "model")
        again = extended(tmp_path / "model", [])
        torch.testing.assert_close(logits(load(again, name), ids), before)
    assert again.config.get_text_config().vocab_size == source.vocab_size


def test_a_new_token_is_generated_where_it_is_the_likeliest(folders: Any) -> None:
    source = extended(folders("llama"))
    model = load(source, "llama")
    prompt = torch.tensor([source.tokenizer("a film").input_ids])
    drug = source.tokenizer.convert_tokens_to_ids("<drug>")
    hidden = model.model(input_ids=prompt).last_hidden_state[0, -1].detach()
    with torch.no_grad():
        model.lm_head.new_rows[drug - source.new_tokens.first] = 10 * hidden
    for beams in (1, 3):
        written = model.generate(prompt, max_new_tokens=3, do_sample=False, num_beams=beams)
        assert drug in written[0, prompt.shape[1] :]


def test_rows_that_the_base_has_to_spare_are_not_what_trains(folders: Any) -> None:
    folder = folders("gpt2", vocab_size=512)
    source = extended(folder)
    assert source.new_tokens.end < 512
    model = load(source, "gpt2")
    assert logits(model, [1, 2]).shape[-1] == 512
    ids = source.tokenizer("<drug>").input_ids
    before = model.transformer.wte(torch.tensor(ids)).detach()
    with torch.no_grad():
        model.transformer.wte.weight[ids] += 1
    assert torch.equal(model.transformer.wte(torch.tensor(ids)), before)
    fold(model)
    assert model.config.vocab_size == 512
    assert torch.equal(model.transformer.wte.weight[ids], before)


def test_a_copy_of_the_model_is_a_model_of_its_own(folders: Any) -> None:
    source = extended(folders("gpt2"))
    model = load(source, "gpt2")
    ids = source.tokenizer("<drug> film").input_ids
    before = logits(model, ids).detach()
    twin = copy.deepcopy(model)
    for key in new_row_parameters(twin):
        nn.init.zeros_(twin.get_parameter(key))
    assert torch.equal(logits(model, ids), before)
    assert not torch.equal(logits(twin, ids), before)


@pytest.mark.parametrize("name", ["esm", "mobilebert"])
def test_a_model_whose_logits_cannot_grow_is_refused(name: str, folders: Any) -> None:
    size = {"embedding_size": 16, "intra_bottleneck_size": 16} if name == "mobilebert" else {}
    with pytest.raises(ModelError, match="cannot gain tokens"):
        load(extended(folders(name, **size)), name)


# -- whole runs --------------------------------------------------------------------------------------


@pytest.fixture
def new_recipe(recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Recipe]:
    """Makes a recipe with new tokens and rows in which they stand."""
    data = tiny.write_data(tmp_path)
    for path in map(Path, data.values()):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            row["text"] = f"<drug> {row['text']} greatbad"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def make(strategy: Any, **rest: Any) -> Recipe:
        made = recipe(strategy, data=data, **rest)
        return made.model_copy(update={"model": made.model.model_copy(update={"new_tokens": NEW})})

    return make


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@EVERY_STRATEGY
def test_the_rows_train_whatever_the_strategy_and_the_base_stays(strategy: str, new_recipe: Any) -> None:
    job, adapted = tiny.make_job(new_recipe(strategy, epochs=1, max_grad_norm=None))
    (rows,) = new_row_parameters(adapted.base.module)
    assert rows in adapted.base.new_parameters
    trainable = {name for name, parameter in job.model.named_parameters() if parameter.requires_grad}
    before = tiny.every_tensor(job.model)
    list(training_steps(job))
    assert changed(before, tiny.every_tensor(job.model)) == trainable
    assert rows in trainable
    table = rows.replace(".new_rows.weight", ".weight")
    assert (table in trainable) == (strategy == "full")


def test_under_a_head_of_ours_the_rows_train_too(new_recipe: Any) -> None:
    job, adapted = tiny.make_job(new_recipe("linear-probe", task={"pooling": "mean"}, epochs=1))
    (rows,) = new_row_parameters(adapted.base.module)
    before = job.model.get_parameter(rows).detach().clone()
    list(training_steps(job))
    assert not torch.equal(job.model.get_parameter(rows), before)


@EVERY_STRATEGY
def test_only_the_rows_of_a_frozen_embedding_are_saved_and_read_again_bit_for_bit(
    strategy: str, new_recipe: Any
) -> None:
    made = new_recipe(strategy, epochs=1)
    job, adapted = tiny.make_job(made)
    list(training_steps(job))
    state = tiny.copied(job.strategy.state(job.model))
    vocabulary = adapted.source.config.vocab_size
    assert any(len(tensor) == len(NEW) and "new_rows" in name for name, tensor in state.items())
    if strategy != "full":
        assert not any(tensor.ndim and len(tensor) == vocabulary for tensor in state.values())
    again, _ = tiny.make_job(made)
    again.strategy.load_state(again.model, state)
    assert not changed(tiny.every_tensor(job.model), tiny.every_tensor(again.model))


def test_a_finished_run_knows_its_tokens(new_recipe: Any) -> None:
    run = adaptkit.run(new_recipe("lora", epochs=1))
    tokenizer = open_source(ModelSpec(name=run.recipe.model.name, new_tokens=NEW)).tokenizer
    kept = json.loads((run.directory / "adapter" / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    assert {token["content"] for token in kept["added_tokens"]} >= set(NEW)
    again = adaptkit.load(run.directory)
    assert again.tokenizer.get_vocab() == tokenizer.get_vocab()
    texts = ["<drug> good film", "greatbad bad plot"]
    assert again.predict(texts) == run.predict(texts)
