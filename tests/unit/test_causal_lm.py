from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from texts import DATA, TEXTS, rows, tokenizer

from adaptkit.errors import DataError, RecipeError
from adaptkit.recipe import DataSpec
from adaptkit.task import Splits
from adaptkit.tasks._running_text import BLOCK
from adaptkit.tasks.causal_lm import CausalLM, CausalLMOptions


class Endless:
    """A tokenizer without an end token."""

    eos_token_id = None

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self.encode = encode

    def __call__(self, text: str | list[str], **options: Any) -> dict[str, Any]:
        return {"input_ids": self.encode(text) if isinstance(text, str) else [self.encode(each) for each in text]}


def task(**options) -> CausalLM:
    return CausalLM(CausalLMOptions(name="causal-lm", **options))


def blocks(manner: str, *texts: str, length: int = 100, **options) -> list[dict[str, list[int]]]:
    return task(block=length, **options).features(rows(*texts), DATA, tokenizer(manner), 100)


def stream(features: list[dict[str, list[int]]]) -> list[int]:
    return [*features[0]["input_ids"], *(token for feature in features[1:] for token in feature["input_ids"][1:])]


def ids(manner: str, text: str) -> list[int]:
    return tokenizer(manner)(text, add_special_tokens=False)["input_ids"]


def test_the_task_registers_itself_without_torch():
    code = (
        "import sys; from adaptkit.tasks import adaptkit_register_tasks as hook; hook(lambda task: print(task.name)); "
        "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    )
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"causal-lm", "masked-lm", "span-corruption"} <= set(names)


# -- blocks --------------------------------------------------------------------------------------------


def test_documents_begin_as_the_tokenizer_begins_them_and_end_with_the_end_token():
    subject = tokenizer("llama")
    begin, end = subject.bos_token_id, subject.eos_token_id
    one, other = ids("llama", TEXTS[0]), ids("llama", TEXTS[1])
    assert stream(blocks("llama", TEXTS[0], TEXTS[1])) == [begin, *one, end, begin, *other, end]
    end = tokenizer("gpt2").eos_token_id
    assert stream(blocks("gpt2", TEXTS[0])) == [*ids("gpt2", TEXTS[0]), end]


@pytest.mark.parametrize("length", [2, 3, 7, 16, 100])
def test_blocks_give_back_the_text_and_predict_each_token_but_the_first_once(length):
    features = blocks("gpt2", *TEXTS, length=length)
    assert max(len(feature["input_ids"]) for feature in features) <= length
    assert all(len(feature["input_ids"]) == length for feature in features[:-1])
    text = "<|endoftext|>".join(TEXTS) + "<|endoftext|>"
    assert tokenizer("gpt2").decode(stream(features)) == text
    predicted = [label for feature in features for label in feature["labels"] if label != -100]
    assert predicted == stream(features)[1:]


def test_labels_are_the_tokens_except_the_first_of_a_block():
    for feature in blocks("gpt2", *TEXTS, length=9):
        assert feature["labels"] == [-100, *feature["input_ids"][1:]]


def test_texts_that_are_not_joined_begin_a_block_each():
    subject = task(block=16, join=False)
    features = subject.features(rows(*TEXTS), DATA, tokenizer("llama"), 100)
    begin = tokenizer("llama").bos_token_id
    begun = [feature for feature in features if feature["input_ids"][0] == begin]
    assert len(begun) == len(TEXTS)
    assert len(features) > len(TEXTS)
    assert subject.notes == ["4 of 4 texts are longer than a block and were cut into several"]
    assert task(block=100, join=False).features(rows(*TEXTS), DATA, tokenizer("llama"), 100) == blocks(
        "llama", *TEXTS, join=False
    )


def test_without_an_end_token_texts_are_joined_as_they_are_and_a_person_is_told():
    bare, subject = tokenizer("gpt2"), task(block=100)
    features = subject.features(rows("one", " two"), DATA, Endless(lambda text: bare(text)["input_ids"]), 100)
    assert bare.decode(stream(features)) == "one two"
    assert "no end token" in subject.notes[0]


@pytest.mark.parametrize(
    ("recipe", "positions", "block"),
    [(None, 8192, BLOCK), (None, 64, 64), (1024, 1024, 1024), (100, 100, 100)],
)
def test_a_block_is_what_the_recipe_says_else_512_or_what_the_base_takes(recipe, positions, block):
    data = DataSpec(train="train.jsonl", max_length=recipe)
    features = task().features(rows(*(TEXTS * 40)), data, tokenizer("gpt2"), positions)
    assert len(features[0]["input_ids"]) == block


def test_a_block_that_is_longer_than_a_row_may_be_is_refused():
    with pytest.raises(RecipeError, match="a block of 200 tokens is longer than the 128") as caught:
        task(block=200).features(rows(*TEXTS), DATA, tokenizer("gpt2"), 128)
    assert caught.value.problems[0].where == "task.block"


def test_a_block_of_one_token_is_refused():
    one = DataSpec(train="train.jsonl", max_length=1)
    with pytest.raises(RecipeError, match="a block of 1 token leaves nothing to predict") as caught:
        task().features(rows(*TEXTS), one, tokenizer("gpt2"), 1)
    assert caught.value.problems[0].where == "data.max_length"


def test_no_rows_give_no_blocks():
    assert task().features([], DATA, tokenizer("gpt2"), 100) == []


@pytest.mark.parametrize("join", [True, False])
def test_a_text_in_which_nothing_can_be_predicted_is_refused(join):
    with pytest.raises(DataError, match="a single token") as caught:
        task(join=join).features(rows("a"), DATA, Endless(lambda text: [7]), 100)
    assert caught.value.problems[0].where == "train.jsonl:1"


def test_a_text_without_a_token_is_refused_with_its_row():
    with pytest.raises(DataError, match="no token") as caught:
        task().features(rows("a", "\u200b", "b"), DATA, Endless(lambda text: [7] * text.isalpha()), 100)
    assert [problem.where for problem in caught.value.problems] == ["train.jsonl:2"]


# -- rows ----------------------------------------------------------------------------------------------


def test_every_text_that_cannot_be_used_is_named_in_one_error():
    bad = [None, 3, ["a"], "", "  ", "\ud800"]
    train, evaluation = (
        [replace(row, columns={"text": "body"}) for row in rows(*texts)] for texts in (bad[:3], bad[3:])
    )
    with pytest.raises(DataError) as caught:
        task().prepare(Splits([*rows("fine"), *train], evaluation), DATA)
    assert len(caught.value.problems) == len(bad)
    assert all("column 'body'" in str(problem.where) and problem.fix for problem in caught.value.problems)
    with pytest.raises(DataError, match="no training rows"):
        task().prepare(Splits(()), DATA)
    with pytest.raises(DataError, match="has only white space"):
        task().check(rows(" "), labelled=False)


def test_a_person_is_told_how_much_text_there_is_and_what_is_in_two_splits():
    subject = task()
    subject.prepare(Splits(rows("ab", "cde"), rows("ab", "x")), DATA)
    assert subject.facts() == ["text to train on: 2 documents, 5 characters"]
    assert subject.notes == ["1 of 2 evaluation rows are also training rows, so the evaluation figures flatter"]
    later = task()
    later.load_state(json.loads(json.dumps(subject.state())))
    assert later.facts() == subject.facts()


def test_the_loss_falls_on_all_but_the_first_token():
    subject = task(block=100)
    (feature,) = subject.features(rows(TEXTS[0]), DATA, tokenizer("llama"), 100)
    assert subject.preview(feature, tokenizer("llama")) == [("<s>", False), (TEXTS[0] + "</s>", True)]


# -- prompts -------------------------------------------------------------------------------------------


def test_a_prompt_is_one_feature_without_an_end():
    subject = task(max_new_tokens=10)
    features = subject.features(rows(*TEXTS), DATA, tokenizer("llama"), 100, labelled=False)
    begin = tokenizer("llama").bos_token_id
    assert features == [{"input_ids": [begin, *ids("llama", text)]} for text in TEXTS]


@pytest.mark.parametrize(("new", "kept"), [(4, 26), (20, 15), (1000, 15)])
def test_of_a_long_prompt_the_end_is_kept_with_room_to_continue(new, kept):
    subject = task(max_new_tokens=new)
    (feature,) = subject.features(rows(" ".join(TEXTS)), DATA, tokenizer("llama"), 30, labelled=False)
    assert len(feature["input_ids"]) == kept
    assert feature["input_ids"][0] == tokenizer("llama").bos_token_id
    assert feature["input_ids"][1:] == ids("llama", " ".join(TEXTS))[1 - kept :]
