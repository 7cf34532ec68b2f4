"""A tokenizer that is trained on the rows: of the family's kind, always the same, and kept with the run."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adaptkit.errors import ModelError
from adaptkit.models.base.tokenizers import load_tokenizer, train_tokenizer, trained_tokenizer
from adaptkit.recipe import ModelSpec, TokenizerTraining
from adaptkit.strategy import Family

FAMILIES: tuple[Family, ...] = ("encoder", "decoder", "encoder-decoder")
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
SPEC = ModelSpec(name="bert", init="random", tokenizer=TokenizerTraining(vocab_size=500))


def texts() -> list[str]:
    """Returns texts of few words, many word beginnings, accents and a character that is rare."""
    stems = [first + second for first in ("trans", "pre", "sub") for second in ("form", "train", "word")]
    words = [stem + ending for stem in stems for ending in ("", "er", "ing")]
    return [" ".join(words[start:] + words[:start]) for start in range(len(words))] + ["Naïve café, ½!"]


def train(family: Family, vocab_size: int = 500, **settings: Any) -> Any:
    return train_tokenizer(texts, TokenizerTraining(vocab_size=vocab_size, **settings), family)


def fingerprint(tokenizer: Any) -> str:
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


@EVERY_FAMILY
def test_every_process_trains_the_same_tokenizer(family: Family) -> None:
    code = f"import test_tokenizer_training as t; print(t.fingerprint(t.train({family!r})))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    assert done.stdout.strip() == fingerprint(train(family))


def test_an_encoder_reads_cls_text_sep_and_tells_the_texts_of_a_pair_apart() -> None:
    tokenizer = train("encoder")
    single = tokenizer("transform")
    assert tokenizer.convert_ids_to_tokens(single.input_ids)[:: len(single.input_ids) - 1] == ["[CLS]", "[SEP]"]
    pair = tokenizer("transform", "prewording")
    separator = pair.input_ids.index(tokenizer.sep_token_id) + 1
    assert pair.token_type_ids == [0] * separator + [1] * (len(pair.input_ids) - separator)
    assert pair.input_ids[-1] == tokenizer.sep_token_id
    assert tokenizer.mask_token == "[MASK]"
    assert tokenizer.unk_token_id in tokenizer("ⱕ").input_ids


def test_an_encoder_without_token_types_is_not_given_any() -> None:
    settings = TokenizerTraining(vocab_size=500)
    assert "token_type_ids" not in train_tokenizer(texts, settings, "encoder", pairs=False)("a", "b")


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_a_model_that_writes_gets_back_every_text_as_it_was(family: Family) -> None:
    tokenizer = train(family)
    text = "  Naïve ½ cafés,\n\t漢字 and 🙂  "
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_a_decoder_can_end_a_text_and_pad_it_and_marks_nothing_by_itself() -> None:
    tokenizer = train("decoder")
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|endoftext|>", None)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert not set(tokenizer("a text").input_ids) & set(tokenizer.all_special_ids)


def test_an_encoder_decoder_ends_every_text_and_has_a_hundred_sentinels() -> None:
    tokenizer = train("encoder-decoder")
    assert tokenizer("word").input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer("word", "form").input_ids.count(tokenizer.eos_token_id) == 2
    sentinels = [tokenizer.convert_tokens_to_ids(f"<extra_id_{number}>") for number in range(100)]
    assert len(set(sentinels)) == 100
    assert tokenizer("form <extra_id_7> word").input_ids.count(sentinels[7]) == 1
    assert tokenizer.decode(sentinels, skip_special_tokens=True) == ""


@pytest.mark.parametrize(("family", "size"), [("encoder", 60), ("decoder", 280), ("encoder-decoder", 380)])
def test_the_vocabulary_has_the_size_that_was_asked_for_and_less_where_the_text_gives_less(
    family: Family, size: int
) -> None:
    for wanted in (size, 5000):
        ids = sorted(train(family, wanted).get_vocab().values())
        assert ids == list(range(len(ids))), "no id is left out"
        assert len(ids) == wanted if wanted == size else len(ids) < wanted


@EVERY_FAMILY
def test_capital_letters_count_unless_the_recipe_says_otherwise(family: Family) -> None:
    assert train(family)("WORD").input_ids != train(family)("word").input_ids
    small = train(family, lowercase=True)
    assert small("WORD").input_ids == small("word").input_ids


@EVERY_FAMILY
def test_a_tokenizer_is_kept_whole_and_read_again_instead_of_trained_again(family: Family, tmp_path: Path) -> None:
    def keep(source: Any) -> Any:
        return trained_tokenizer(SPEC, TokenizerTraining(vocab_size=500), family, None, source, tmp_path / "tokenizer")

    first, again = keep(texts), keep(None)
    assert fingerprint(first) == fingerprint(again) == fingerprint(train(family))
    assert (first.pad_token_id, first.eos_token_id, first.all_special_ids, first.model_input_names) == (
        again.pad_token_id,
        again.eos_token_id,
        again.all_special_ids,
        again.model_input_names,
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer"]


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gpt2", "gemma2"])
def test_the_architecture_beside_it_does_not_change_a_tokenizer(architecture: str, tmp_path: Path) -> None:
    from transformers import CONFIG_MAPPING

    tokenizer = train("decoder")
    tokenizer.save_pretrained(tmp_path)
    CONFIG_MAPPING[architecture]().save_pretrained(tmp_path)
    assert fingerprint(load_tokenizer(ModelSpec(name=str(tmp_path)))) == fingerprint(tokenizer)


@EVERY_FAMILY
def test_no_text_no_tokenizer(family: Family) -> None:
    with pytest.raises(ModelError, match="no text to train a tokenizer on"):
        train_tokenizer(lambda: ["", " \n"], TokenizerTraining(vocab_size=500), family)


@pytest.mark.parametrize(("family", "least"), [("decoder", 258), ("encoder-decoder", 358)])
def test_a_vocabulary_that_has_no_room_for_every_byte_is_refused_with_the_least(family: Family, least: int) -> None:
    with pytest.raises(ModelError, match=f"{least} or more"):
        train(family, least - 1)
    assert len(train(family, least)) == least


def test_a_lost_tokenizer_of_a_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is missing") as error:
        trained_tokenizer(SPEC, TokenizerTraining(vocab_size=500), "encoder", None, None, tmp_path / "gone")
    assert str(tmp_path / "gone") in str(error.value)
