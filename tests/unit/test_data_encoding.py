from __future__ import annotations

import pytest

from adaptkit.data.encoding import encode_texts
from adaptkit.errors import RecipeError


class WordTokenizer:
    """One token a word: [CLS] text [SEP] (pair [SEP]); the longer text is cut first, as transformers does."""

    pad_token_id = 0
    model_input_names = ("input_ids", "token_type_ids", "attention_mask")

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return 3 if pair else 2

    def __call__(self, texts, pairs=None, *, truncation=False, max_length=None, return_token_type_ids=False, **_):
        encoded = {"input_ids": [], "token_type_ids": []}
        for first, second in zip(texts, pairs or [None] * len(texts), strict=True):
            words = [first.split(), None if second is None else second.split()]
            special = self.num_special_tokens_to_add(second is not None)
            while truncation and sum(len(part or ()) for part in words) + special > max_length:
                max(words, key=lambda part: len(part or ())).pop()
            head = [1, *map(len, words[0]), 2]
            tail = [*map(len, words[1]), 2] if words[1] is not None else []
            encoded["input_ids"].append(head + tail)
            encoded["token_type_ids"].append([0] * len(head) + [1] * len(tail))
        return encoded if return_token_type_ids else {"input_ids": encoded["input_ids"]}


def test_rows_that_fit_are_left_as_they_are_and_the_others_are_cut_and_counted():
    encoded = encode_texts(["one two", "a b c d e f", "x"], WordTokenizer(), 5)
    assert encoded.input_ids == [[1, 3, 3, 2], [1, 1, 1, 1, 2], [1, 1, 2]]
    assert encoded.truncated == 1
    assert encoded.token_type_ids is None


def test_a_row_of_exactly_the_maximum_is_not_cut():
    assert encode_texts(["a b c"], WordTokenizer(), 5).truncated == 0


def test_a_pair_knows_which_token_is_of_which_text():
    encoded = encode_texts(["a b", "a"], WordTokenizer(), 7, pairs=["c", "c d e f g h"])
    assert encoded.token_type_ids == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1]]
    assert [len(ids) for ids in encoded.input_ids] == [6, 7]
    assert encoded.truncated == 1


def test_no_texts_give_no_tokens():
    assert encode_texts([], WordTokenizer(), 5).input_ids == []


@pytest.mark.parametrize(("pairs", "least"), [(None, 3), (["b"], 5)])
def test_a_maximum_without_room_for_a_token_is_an_error_of_the_recipe(pairs, least):
    with pytest.raises(RecipeError) as caught:
        encode_texts(["a"], WordTokenizer(), least - 1, pairs=pairs)
    assert caught.value.problems[0].where == "data.max_length"
    assert caught.value.problems[0].allowed == f"at least {least}"
    encode_texts(["a"], WordTokenizer(), least, pairs=pairs)
