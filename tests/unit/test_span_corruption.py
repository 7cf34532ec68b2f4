from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from texts import DATA, SENTINELS, TEXTS, rows, tokenizer

from adaptkit.errors import DataError, ModelError, RecipeError
from adaptkit.tasks.span_corruption import (
    Corruption,
    SpanCorruption,
    SpanCorruptionOptions,
    corrupt,
    draw_spans,
    sentinels_of,
)

T5 = tokenizer("t5")
END = T5.eos_token_id
SENTINEL_IDS = sentinels_of(T5)
LONG = " ".join(TEXTS * 3)


def task(**options) -> SpanCorruption:
    return SpanCorruption(SpanCorruptionOptions(name="span-corruption", **options))


def blocks(
    subject: SpanCorruption, *texts: str, length: int = 100, labelled: bool = True
) -> list[dict[str, list[int]]]:
    return subject.features(rows(*texts), DATA, T5, length, labelled=labelled)


def restored(varied: dict[str, list[int]]) -> list[int]:
    """Puts the spans of a target back into the corrupted input."""
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in varied["labels"]:
        if token in SENTINEL_IDS:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [token for seen in varied["input_ids"] for token in spans.get(seen, [seen])]


@pytest.mark.parametrize("length", [8, 30, 100])
@pytest.mark.parametrize("join", [True, False])
def test_input_and_target_together_are_the_text_exactly(length, join):
    subject = task(join=join)
    features = blocks(subject, *TEXTS, LONG, length=length)
    for epoch in range(5):
        stream: list[int] = []
        for feature in features:
            varied = subject.vary(feature, Random(epoch))
            assert varied["input_ids"][-1] == varied["labels"][-1] == END
            stream += restored({key: ids[:-1] for key, ids in varied.items()})
        text = ("</s>" if join else "").join([*TEXTS, LONG])
        assert T5.decode(stream) == text


def test_sentinels_stand_in_order_and_one_more_ends_the_target():
    subject = task()
    for feature in blocks(subject, LONG):
        varied = subject.vary(feature, Random(0))
        spans = feature["spans"]
        assert [token for token in varied["input_ids"] if token in SENTINEL_IDS] == SENTINEL_IDS[:spans]
        assert [token for token in varied["labels"] if token in SENTINEL_IDS] == SENTINEL_IDS[: spans + 1]
        assert varied["labels"][-2:] == [SENTINEL_IDS[spans], END]


@pytest.mark.parametrize(("rate", "mean"), [(0.15, 3.0), (0.3, 2.0)])
def test_the_share_of_missing_tokens_and_the_mean_span_are_what_the_recipe_says(rate, mean):
    features = blocks(task(corruption_rate=rate, mean_span=mean), LONG)[:-1]
    tokens = sum(len(feature["input_ids"]) for feature in features)
    missing, spans = (sum(feature[key] for feature in features) for key in ("missing", "spans"))
    assert missing / tokens == pytest.approx(rate, abs=0.01)
    assert missing / spans == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("rate", [0.01, 0.15, 0.5, 0.99])
def test_spans_lie_within_the_block_do_not_touch_and_have_the_wanted_sum(tokens, rate):
    corruption = task(corruption_rate=rate)._corruption(tokens)
    for seed in range(50):
        spans = draw_spans(tokens, corruption, Random(seed))
        assert len(spans) == corruption.spans
        assert sum(end - begin for begin, end in spans) == corruption.missing
        edges = [edge for span in spans for edge in span]
        assert edges == sorted(set(edges))
        assert edges[0] >= 0
        assert edges[-1] <= tokens


def test_all_ways_to_lay_spans_are_alike_probable():
    draws = 6000
    counts = Counter(tuple(draw_spans(6, Corruption(missing=3, spans=2), Random(seed))) for seed in range(draws))
    ways = 2 * 6  # 3 tokens in 2 spans: 1+2 or 2+1; 3 others in 3 gaps, of which the inner one has at least one
    assert len(counts) == ways
    assert max(abs(count - draws / ways) for count in counts.values()) < 4 * (draws / ways) ** 0.5


def test_spans_are_a_function_of_the_row_and_the_generator():
    subject = task()
    feature = blocks(subject, LONG)[0]
    assert subject.vary(feature, Random("a")) == subject.vary(feature, Random("a"))
    assert subject.vary(feature, Random("a")) != subject.vary(feature, Random("b"))


@pytest.mark.parametrize("length", [8, 9, 25, 40, 64])
@pytest.mark.parametrize("rate", [0.15, 0.5])
def test_blocks_are_as_long_as_fits_when_they_are_corrupted(length, rate):
    subject = task(corruption_rate=rate)
    features = blocks(subject, LONG, length=length)
    longest = 0
    for feature in features:
        varied = subject.vary(feature, Random(0))
        sides = len(varied["input_ids"]), len(varied["labels"])
        longest = max(longest, *sides)
        assert subject.length(feature) == subject.length(varied) == sum(sides)
    assert length - 1 <= longest <= length


def test_no_block_has_more_spans_than_there_are_sentinels():
    features = blocks(task(), *[LONG] * 20, length=10_000)
    assert max(feature["spans"] for feature in features) == SENTINELS - 1


def test_the_example_of_the_paper():
    text = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    read, written = corrupt(text, [(2, 4), (8, 9)], ["<X>", "<Y>", "<Z>"])
    assert read == ["Thank", "you", "<X>", "me", "to", "your", "party", "<Y>", "week"]
    assert written == ["<X>", "for", "inviting", "<Y>", "last", "<Z>"]


def test_sentinels_go_by_the_number_in_their_name():
    names = T5.convert_ids_to_tokens(SENTINEL_IDS)
    assert names == [f"<extra_id_{number}>" for number in range(SENTINELS)]
    with pytest.raises(ModelError, match="no sentinel tokens") as caught:
        task().features(rows("a"), DATA, tokenizer("gpt2"), 100)
    assert "new_tokens" in str(caught.value)


def test_a_block_without_room_is_refused():
    with pytest.raises(RecipeError, match="leaves no room"):
        blocks(task(), LONG, length=2)


def test_a_prompt_is_one_feature_and_stays_as_it_is():
    subject = task()
    features = blocks(subject, "of his <extra_id_0> are coral", labelled=False)
    assert features == [{"input_ids": T5("of his <extra_id_0> are coral")["input_ids"]}]
    assert subject.vary(features[0], Random(0)) == features[0]
    with pytest.raises(DataError) as caught:
        blocks(subject, "of his bones", "<extra_id_0>" + LONG, length=50, labelled=False)
    assert [problem.where for problem in caught.value.problems] == ["train.jsonl:1", "train.jsonl:2"]


def test_what_was_written_behind_a_sentinel_goes_into_its_place():
    subject = task()
    (prompt,) = blocks(subject, "of his<extra_id_0> are<extra_id_1> made<extra_id_2>.", labelled=False)
    subject.tokenizer = T5
    answer = T5("<extra_id_0> bones<extra_id_1> coral<extra_id_3> pearls", add_special_tokens=False)["input_ids"]
    filled = {"text": "of his bones are coral made.", "fills": ["bones", "coral", ""]}
    assert subject._filled(prompt["input_ids"], answer) == filled


def test_the_preview_shows_the_input_then_the_target_on_which_the_loss_falls():
    subject = task()
    varied = subject.vary(blocks(subject, TEXTS[0])[0], Random(0))
    (read, off), arrow, (written, on) = subject.preview(varied, T5)
    assert (off, arrow, on) == (False, (" → ", False), True)
    assert "<extra_id_0>" in read
    assert written.startswith("<extra_id_0>")
