from __future__ import annotations

import math
from itertools import pairwise
from random import Random

import pytest
from texts import DATA, TEXTS, rows, tokenizer

from adaptkit.errors import DataError, ModelError, RecipeError
from adaptkit.tasks.masked_lm import NEVER, MaskedLM, MaskedLMOptions, chosen_positions

BERT = tokenizer("bert")
EPOCHS = 300


def task(**options) -> MaskedLM:
    return MaskedLM(MaskedLMOptions(name="masked-lm", **options))


def blocks(subject: MaskedLM, *texts: str, length: int = 30) -> list[dict[str, list[int]]]:
    return subject.features(rows(*texts), DATA, BERT, length)


def draws(subject: MaskedLM, feature: dict[str, list[int]]) -> list[dict[str, list[int]]]:
    return [subject.vary(feature, Random(f"epoch {epoch}")) for epoch in range(EPOCHS)]


def within(count: int, of: int, probability: float) -> bool:
    """Whether a count is within four standard deviations of a binomial distribution's mean."""
    return abs(count - of * probability) <= 4 * math.sqrt(of * probability * (1 - probability))


# -- blocks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [3, 4, 11, 30])
def test_blocks_give_back_the_texts_within_special_tokens(length):
    features = blocks(task(), *TEXTS, length=length)
    begin, end = BERT.cls_token_id, BERT.sep_token_id
    stream = []
    for feature in features:
        ids = feature["input_ids"]
        assert (ids[0], ids[-1]) == (begin, end)
        assert len(ids) == len(feature["words"]) <= length
        stream += ids[1:-1]
    texts = [BERT(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert stream == [*texts[0], *(token for text in texts[1:] for token in (end, *text))]


def test_texts_that_are_not_joined_have_a_block_each():
    subject = task(join=False)
    features = subject.features(rows(*TEXTS), DATA, BERT, 100)
    assert [feature["input_ids"] for feature in features] == BERT(list(TEXTS))["input_ids"]
    assert not subject.notes
    assert len(subject.features(rows(*TEXTS), DATA, BERT, 10)) > len(TEXTS)
    assert subject.notes == ["4 of 4 texts are longer than a block and were cut into several"]


def test_a_block_without_room_for_a_token_is_refused():
    with pytest.raises(RecipeError, match="no room beside the 2 special tokens"):
        blocks(task(), *TEXTS, length=2)


def test_a_tokenizer_without_a_mask_token_is_refused():
    with pytest.raises(ModelError, match="no mask token"):
        task().features(rows(*TEXTS), DATA, tokenizer("gpt2"), 30)


# -- masks ---------------------------------------------------------------------------------------------


def test_a_mask_is_a_function_of_the_row_and_the_generator():
    subject = task()
    feature = blocks(subject, *TEXTS)[0]
    before = {key: list(value) for key, value in feature.items()}
    assert subject.vary(feature, Random("a")) == subject.vary(feature, Random("a"))
    assert subject.vary(feature, Random("a")) != subject.vary(feature, Random("b"))
    assert feature == before


def test_labels_are_the_tokens_that_were_there_and_the_rest_stays():
    subject = task()
    for feature in blocks(subject, *TEXTS):
        for varied in draws(subject, feature):
            for original, seen, label in zip(feature["input_ids"], varied["input_ids"], varied["labels"], strict=True):
                assert label in (-100, original)
                assert label == original or seen == original


@pytest.mark.parametrize("whole_word", [False, True])
def test_no_special_token_is_ever_chosen_or_put_in_place_of_another(whole_word):
    subject = task(whole_word=whole_word, mask_probability=0.9)
    feature = blocks(subject, "a \u4e2d of", "sea")[0]
    special = set(BERT.all_special_ids)
    assert BERT.unk_token_id in feature["input_ids"]
    for varied in draws(subject, feature):
        assert not special & set(varied["labels"])
        new = {seen for seen, old in zip(varied["input_ids"], feature["input_ids"], strict=True) if seen != old}
        assert new & special <= {BERT.mask_token_id}


@pytest.mark.parametrize("whole_word", [False, True])
def test_at_least_one_token_of_each_block_is_chosen(whole_word):
    subject = task(whole_word=whole_word, join=False)
    for feature in blocks(subject, "of", "sea-nymphs", "those pearls are"):
        assert all(max(varied["labels"]) >= 0 for varied in draws(subject, feature))


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_the_share_of_chosen_tokens_is_what_the_recipe_says(probability):
    words = list(range(200))
    chosen = chosen_positions([NEVER, *words, NEVER], probability, Random(0))
    assert len(chosen) == len(set(chosen)) == probability * 200
    counts = [0] * 200
    for epoch in range(EPOCHS):
        for position in chosen_positions(words, probability, Random(epoch)):
            counts[position] += 1
    assert all(within(count, EPOCHS, probability) for count in counts)


def test_of_the_chosen_tokens_80_percent_are_masked_10_replaced_and_10_kept():
    subject = task()
    masked, kept, replaced = 0, 0, []
    for feature in blocks(subject, *TEXTS):
        for varied in draws(subject, feature):
            for seen, label in zip(varied["input_ids"], varied["labels"], strict=True):
                if label != -100:
                    masked += seen == BERT.mask_token_id
                    kept += seen == label
                    replaced += [seen] if seen not in (label, BERT.mask_token_id) else []
    total = masked + kept + len(replaced)
    ordinary = len(BERT) - len(BERT.all_special_ids)
    assert total > 3000
    assert within(masked, total, 0.8)
    assert within(len(replaced), total, 0.1 * (1 - 1 / ordinary))  # one draw in so many gives the token itself
    assert within(kept, total, 0.1 * (1 + 1 / ordinary))
    assert len(set(replaced)) > ordinary / 2


def test_whole_words_are_chosen_with_all_their_tokens_or_not_at_all():
    subject = task(whole_word=True, mask_probability=0.3)
    feature = blocks(subject, "strange knell suffer", "coral suffer", length=60)[0]
    tokens = BERT.convert_ids_to_tokens(feature["input_ids"])
    assert any(token.startswith("##") for token in tokens)
    for varied in draws(subject, feature):
        chosen = [label != -100 for label in varied["labels"]]
        for (_, before), (token, after) in pairwise(zip(tokens, chosen, strict=True)):
            assert before == after or not token.startswith("##")


def test_words_of_two_texts_are_never_one_word():
    assert sorted(chosen_positions([0, NEVER, 0], 0.5, Random(0))) in ([0], [2])


# -- prompts -------------------------------------------------------------------------------------------


def test_a_prompt_is_one_feature_and_stays_as_it_is():
    subject = task()
    features = subject.features(rows("of his [MASK] are coral"), DATA, BERT, 30, labelled=False)
    assert features == [{"input_ids": BERT("of his [MASK] are coral")["input_ids"]}]
    assert subject.vary(features[0], Random(0)) == features[0]


def test_prompts_that_cannot_be_answered_are_all_named():
    subject = task()
    with pytest.raises(DataError) as caught:
        subject.features(rows("of his bones", "a [MASK]", "[MASK] " * 30), DATA, BERT, 20, labelled=False)
    assert [problem.found for problem in caught.value.problems] == [
        "the prompt has no mask token",
        "the prompt has 32 tokens",
    ]


def test_the_preview_shows_the_masks_and_where_the_loss_falls():
    subject = task()
    pieces = subject.preview(subject.vary(blocks(subject, *TEXTS)[0], Random(0)), BERT)
    learned = [text for text, on in pieces if on]
    assert any("[MASK]" in text for text in learned)
    assert not any("[MASK]" in text for text, on in pieces if not on)
