"""Figures over pairs of texts are those of the reference implementations, however the pairs come."""

from __future__ import annotations

import random
import re
import sys

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from adaptkit.metric import TextMetric
from adaptkit.metrics.texts import Bleu, Chrf, ExactMatch, Rouge

METRICS: list[type[TextMetric]] = [Bleu, Chrf, Rouge, ExactMatch]
REFERENCES = (
    "In the beginning God created the heaven and the earth.",
    "And the earth was without form, and void; and darkness was upon the face of the deep.",
    "And God said, Let there be light: and there was light.",
    "En el principio crió Dios los cielos y la tierra.",
    "Short.",
)


def pairs() -> list[tuple[str, str]]:
    """Returns 60 pairs: references whose words were dropped, doubled or left as they are."""
    generator = random.Random(0)
    made = []
    for _ in range(60):
        reference = generator.choice(REFERENCES)
        words = [word for word in reference.split() for _ in range(generator.choice((0, 1, 1, 1, 2)))]
        made.append((" ".join(words), reference))
    return made


def streamed(metric: TextMetric) -> dict[str, float]:
    for prediction, reference in pairs():
        metric.update(prediction, reference)
    return metric.compute()


@pytest.mark.parametrize(("metric", "library"), [(Bleu, BLEU), (Chrf, CHRF)])
def test_corpus_scores_are_sacrebleus(metric: type[TextMetric], library: type[BLEU | CHRF]) -> None:
    predictions, references = zip(*pairs(), strict=True)
    expected = library().corpus_score(predictions, [references]).score
    assert 20 < expected < 95
    (value,) = streamed(metric()).values()
    assert value == pytest.approx(expected, rel=1e-12)


def test_rouge_is_the_mean_of_rouge_scores_over_the_rows() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    english = [pair for pair in pairs() if pair[0].isascii() and pair[1].isascii()]
    kinds = ["rouge1", "rouge2", "rougeL"]
    rows = [RougeScorer(kinds).score(reference, prediction) for prediction, reference in english]
    metric = Rouge()
    for prediction, reference in english:
        metric.update(prediction, reference)
    figures = metric.compute()
    assert list(figures) == kinds
    for kind in kinds:
        assert figures[kind] == pytest.approx(100 * sum(row[kind].fmeasure for row in rows) / len(rows))
    assert figures["rouge1"] > figures["rougeL"] > figures["rouge2"]


@pytest.mark.parametrize("text", ["Привет, мир", "crió Dios", "नमस्ते दुनिया", "Ελλάδα"])
def test_rouge_knows_words_in_every_script(text: str) -> None:
    metric = Rouge()
    metric.update(text, text)
    metric.update("word", text)
    assert metric.compute()["rouge1"] == pytest.approx(50)


def test_exact_match_is_the_share_of_equal_texts_whatever_white_space_surrounds_them() -> None:
    metric = ExactMatch()
    for prediction in ("yes", " yes\n", "Yes", ""):
        metric.update(prediction, "yes")
    assert metric.compute() == {"exact_match": 50}


@pytest.mark.parametrize("kind", METRICS)
def test_every_figure_is_100_for_the_wanted_texts_and_0_for_empty_ones(kind: type[TextMetric]) -> None:
    perfect, empty = kind(), kind()
    for reference in REFERENCES[:4]:  # a text of one word has no pair of words, and ROUGE-2 is 0
        perfect.update(reference, reference)
        empty.update("", reference)
    assert list(perfect.compute().values()) == pytest.approx([100] * len(perfect.compute()))
    assert set(empty.compute().values()) == {0}


@pytest.mark.parametrize("kind", METRICS)
def test_what_is_kept_does_not_grow_with_the_rows(kind: type[TextMetric]) -> None:
    def size(metric: TextMetric) -> int:
        """Counts the objects that a metric refers to, a library's own aside."""
        own = {key: value for key, value in vars(metric).items() if key not in ("_metric", "_scorer")}
        return sum(len(value) if hasattr(value, "__len__") else 1 for value in own.values())

    metric = kind()
    metric.update(*pairs()[0])
    before = size(metric)
    streamed(metric)
    assert size(metric) == before
    assert not any(re.search("God|Dios", str(value)) for value in vars(metric).values())


def test_a_library_is_imported_when_its_metric_is_made() -> None:
    import subprocess

    code = "import sys, adaptkit.metrics.texts; sys.exit(bool({'sacrebleu', 'rouge_score'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
