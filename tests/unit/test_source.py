"""Config and tokenizer of a base go together, whatever the recipe changes; what does not is said before any weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from adaptkit.errors import ModelError
from adaptkit.models.base.loading import load_model
from adaptkit.models.base.local import check_local
from adaptkit.models.base.source import ModelSource, max_length, open_source
from adaptkit.recipe import ModelSpec, Recipe

TEXTS = ["a small film of great words", "many words, and a great many more", "so small a plot"] * 5
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL_T5 = {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 64}


@pytest.fixture
def base(tiny_bert: Path, tmp_path: Path) -> Path:
    """Returns a copy of the tiny base that may be changed."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "base"))


def new(name: str, config: dict[str, Any], vocab_size: int = 400, **rest: Any) -> ModelSource:
    spec = ModelSpec(name=name, init="random", config=config, tokenizer={"vocab_size": vocab_size}, **rest)
    return open_source(spec, texts=lambda: TEXTS)


def weights(source: ModelSource, seed: int, auto_class: Any = AutoModel) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return dict(load_model(auto_class, source, tiny.numerics())[0].named_parameters())


# -- new weights -------------------------------------------------------------------------------------


def test_new_weights_are_a_function_of_the_seed() -> None:
    source = new("bert", SMALL)
    first, again, other = weights(source, 1), weights(source, 1), weights(source, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embeddings.word_embeddings.weight"], other["embeddings.word_embeddings.weight"])


@pytest.mark.parametrize(
    ("name", "config"), [("bert", SMALL), ("roberta", SMALL), ("modernbert", SMALL), ("gpt2", SMALL), ("t5", SMALL_T5)]
)
def test_the_vocabulary_and_every_special_token_of_new_weights_are_the_tokenizers(
    name: str, config: dict[str, Any]
) -> None:
    source = new(name, config)
    assert source.config.vocab_size == len(source.tokenizer)
    ids = {key: value for key, value in source.config.to_dict().items() if key.endswith("_token_id")}
    assert ids["pad_token_id"] == source.tokenizer.pad_token_id
    assert all(value is None or value in source.tokenizer.all_special_ids for value in ids.values())
    rows = [p for p in weights(source, 0).values() if len(p) == len(source.tokenizer)]
    assert rows, "the embedding has a row for each token"


def test_a_decoder_behind_an_encoder_begins_with_padding_and_ends_with_the_end() -> None:
    config = new("t5", SMALL_T5).config
    assert config.decoder_start_token_id == config.pad_token_id != config.eos_token_id


def test_what_the_recipe_sets_stays() -> None:
    assert new("bert", {**SMALL, "vocab_size": 512}).config.vocab_size == 512
    assert new("llama", {**SMALL, "num_key_value_heads": 1, "bos_token_id": 3}).config.bos_token_id == 3
    with pytest.raises(ModelError, match=r"vocab_size is 20, but the tokenizer has"):
        new("bert", {**SMALL, "vocab_size": 20})


def test_values_that_follow_from_others_follow() -> None:
    config = new("llama", {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}).config
    assert config.head_dim == 16


def test_the_config_and_the_tokenizer_of_a_folder_serve_new_weights(tiny_bert: Path) -> None:
    source = open_source(ModelSpec(name=str(tiny_bert), init="random", config={"num_hidden_layers": 1}))
    assert (source.config.hidden_size, source.config.num_hidden_layers) == (64, 1)
    assert source.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(tiny_bert).get_vocab()
    old = AutoModel.from_pretrained(tiny_bert).embeddings.word_embeddings.weight
    assert not torch.equal(weights(source, 0)["embeddings.word_embeddings.weight"], old)


def test_new_weights_learn_new_tokens_as_any_other() -> None:
    source = new("bert", SMALL, new_tokens=["<drug>"])
    assert source.new_tokens is None
    assert source.config.vocab_size == len(source.tokenizer)
    assert source.tokenizer.tokenize("<drug>") == ["<drug>"]


def test_the_fingerprint_of_new_weights_is_that_of_config_and_tokenizer(tmp_path: Path) -> None:
    def fingerprint(config: dict[str, Any], vocab_size: int, folder: str, **rest: Any) -> str:
        tokenizer = {"vocab_size": vocab_size}
        spec = ModelSpec(name="bert", init="random", config=config, tokenizer=tokenizer, **rest)
        return open_source(spec, texts=lambda: TEXTS, tokenizer_folder=tmp_path / folder).fingerprint

    first = fingerprint(SMALL, 60, "one")
    assert fingerprint(SMALL, 60, "one") == fingerprint(SMALL, 60, "other") == first
    changed = [
        fingerprint({**SMALL, "hidden_size": 64}, 60, "one"),
        fingerprint(SMALL, 50, "smaller"),
        fingerprint(SMALL, 60, "one", new_tokens=["<drug>"]),
    ]
    assert len({first, *changed}) == 4


@pytest.mark.parametrize(("name", "pads"), [("bert", 0), ("roberta", 1)])
def test_only_positions_that_the_architecture_uses_count(name: str, pads: int, recipe: Any) -> None:
    source = new(name, {**SMALL, "max_position_embeddings": 40})
    length = max_length(recipe("full"), source)
    assert length == 40 - pads
    model = load_model(AutoModelForMaskedLM, source, tiny.numerics())[0]
    model(input_ids=torch.full((1, length), 7))


# -- what does not go together -----------------------------------------------------------------------


def test_every_unknown_value_of_a_config_is_named_with_the_nearest() -> None:
    with pytest.raises(ModelError) as error:
        new("bert", {"hidden_sise": 32, "num_layer": 2, "model_type": "gpt2"})
    assert len(error.value.problems) == 3
    assert "did you mean 'hidden_size'?" in str(error.value)
    assert all(problem.where.startswith("model.config.") for problem in error.value.problems if problem.where)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_size": "wide"}, "expected int, got str"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "not a multiple of"),
        ({"hidden_size": -32}, "negative"),
        ({"hidden_act": "gleu"}, "gleu"),
    ],
)
def test_a_config_that_makes_no_model_is_one_block(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=r"model\.config") as error:
        new("bert", config)
    assert said in str(error.value)


def test_pretrained_weights_keep_their_shapes(tiny_bert: Path) -> None:
    for change in ({"hidden_size": 32}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}):
        with pytest.raises(ModelError, match="changes the shape of pretrained weights"):
            open_source(ModelSpec(name=str(tiny_bert), config=change))
    source = open_source(ModelSpec(name=str(tiny_bert), config={"hidden_dropout_prob": 0.5}))
    model = load_model(AutoModelForSequenceClassification, source, tiny.numerics())[0]
    assert {m.p for n, m in model.named_modules() if n.endswith("output.dropout")} == {0.5}


def test_an_architecture_needs_a_tokenizer_and_says_which() -> None:
    with pytest.raises(ModelError, match="which has no tokenizer") as error:
        check_local(ModelSpec(name="bert", init="random"))
    assert "tokenizer: {vocab_size: 8000}" in str(error.value)


def test_a_misspelt_architecture_is_answered_with_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean 'roberta'"):
        check_local(ModelSpec(name="robrta", init="random", tokenizer={"vocab_size": 400}))


@pytest.mark.parametrize(
    ("files", "fix"),
    [
        ({"recipe.yaml": ""}, "--resume"),
        ({"adaptkit.json": "{}"}, "the folder of the whole run"),
        ({"notes.txt": ""}, "a folder with config.json"),
    ],
)
def test_a_folder_that_is_no_model_is_told_by_what_it_is(files: dict[str, str], fix: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match="the folder holds no model") as error:
        check_local(ModelSpec(name=str(tmp_path)))
    assert fix in str(error.value)


def test_a_folder_that_is_not_there_is_answered_with_its_neighbour(tiny_bert: Path) -> None:
    with pytest.raises(ModelError, match=f"did you mean '{tiny_bert}'"):
        check_local(ModelSpec(name=f"{tiny_bert}t"))
    with pytest.raises(ModelError, match=r"model\.tokenizer"):
        check_local(ModelSpec(name=str(tiny_bert), tokenizer=f"{tiny_bert}t"))


# -- another tokenizer -------------------------------------------------------------------------------


def test_another_tokenizer_must_know_the_tokens_of_pretrained_weights_by_the_same_ids(
    tiny_bert: Path, tmp_path: Path
) -> None:
    new("bert", SMALL).tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="is not one for the weights"):
        open_source(ModelSpec(name=str(tiny_bert), tokenizer=str(tmp_path / "other")))
    source = open_source(ModelSpec(name=str(tiny_bert), init="random", tokenizer=str(tmp_path / "other")))
    assert source.config.vocab_size >= len(source.tokenizer)


def test_another_tokenizer_with_the_same_tokens_is_taken_and_is_in_the_fingerprint(
    tiny_bert: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path / "chat")
    source = open_source(ModelSpec(name=str(tiny_bert), tokenizer=str(tmp_path / "chat")))
    assert source.tokenizer.chat_template == "{{ messages }}"
    assert source.fingerprint != open_source(ModelSpec(name=str(tiny_bert))).fingerprint


def test_a_special_token_without_an_embedding_is_refused_with_the_line_that_gives_it_one(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "<fill>"})
    tokenizer.save_pretrained(base)
    with pytest.raises(ModelError, match="for which the model has no embedding: '<fill>'") as error:
        open_source(ModelSpec(name=str(base)))
    assert "model.new_tokens=['<fill>']" in str(error.value)
    source = open_source(ModelSpec(name=str(base), new_tokens=["<fill>"]))
    assert source.vocab_size == source.tokenizer.pad_token_id + 1


def test_a_token_that_the_model_never_reads_needs_no_embedding(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(base)
    rows = json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    assert open_source(ModelSpec(name=str(base))).vocab_size == rows


def test_a_token_that_is_there_already_is_not_new(tiny_bert: Path) -> None:
    with pytest.raises(ModelError) as error:
        open_source(ModelSpec(name=str(tiny_bert), new_tokens=["film", "plot", "myocarditis"]))
    assert len(error.value.problems) == 2


def test_rotary_frequencies_of_random_weights_in_bf16_are_those_of_the_saved_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = new(
        "llama", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    )
    model: Any = load_model(AutoModelForCausalLM, source, tiny.numerics("bf16"))[0]
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.model.rotary_emb.inv_freq, again.model.rotary_emb.inv_freq)


def test_random_weights_are_not_quantised(recipe: Any) -> None:
    made: Recipe = recipe("full")
    assert made.model.precision == "fp32"
    with pytest.raises(ModelError, match="random weights cannot be stored as nf4"):
        load_model(AutoModel, new("bert", SMALL), tiny.numerics("nf4"))


def test_it_is_known_which_models_can_recompute_their_activations() -> None:
    from transformers import AlbertConfig, LlamaConfig, T5Config

    from adaptkit.models.base.configs import can_recompute

    assert [can_recompute(config()) for config in (AlbertConfig, LlamaConfig, T5Config)] == [False, True, True]
