"""Figures over pairs of texts, a generated one and the one that was wanted: sums are kept, texts are not.

Scores are those of the reference implementations, from 0 to 100 as papers print them.
"""

from __future__ import annotations

import unicodedata
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptkit.metric import TextMetric

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric


class _SacreBleu(TextMetric):
    """A corpus score of sacrebleu (Post 2018, arXiv:1804.08771): a function of counts that add up over the rows."""

    def __init__(self) -> None:
        self._metric = self._make()
        self._counts: list[float] = []

    @abstractmethod
    def _make(self) -> Metric:
        """Returns sacrebleu's own metric with its defaults."""

    def update(self, prediction: str, reference: str) -> None:
        """Adds the counts of one pair."""
        (counts,) = self._metric._extract_corpus_statistics([prediction], [[reference]])
        self._counts = [one + other for one, other in zip(self._counts or [0] * len(counts), counts, strict=True)]

    def compute(self) -> dict[str, float]:
        """Returns the score of all pairs together."""
        return {self.name: float(self._metric._aggregate_and_compute([self._counts]).score)}


class Bleu(_SacreBleu):
    """BLEU (Papineni et al. 2002): n-grams of up to four words. For languages that write spaces between words."""

    name = "bleu"

    def _make(self) -> Metric:
        from sacrebleu.metrics.bleu import BLEU

        return BLEU()


class Chrf(_SacreBleu):
    """chrF2 (Popović 2015): n-grams of up to six characters, for every language."""

    name = "chrf"

    def _make(self) -> Metric:
        from sacrebleu.metrics.chrf import CHRF

        return CHRF()


class Rouge(TextMetric):
    """ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004): the mean over the rows of F1, without stemming.

    The figures of Google's rouge-score. That library is not used: it knows no letter but a to z, and it brings
    nltk, whose mere import draws from Python's random numbers.
    """

    name = "rouge"

    def __init__(self) -> None:
        self._sums = {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}
        self._pairs = 0

    def update(self, prediction: str, reference: str) -> None:
        """Adds the scores of one pair."""
        written, wanted = _words(prediction), _words(reference)
        self._pairs += 1
        self._sums["rouge1"] += _overlap(written, wanted, 1)
        self._sums["rouge2"] += _overlap(written, wanted, 2)
        self._sums["rougeL"] += _f1(_common_subsequence(written, wanted), len(written), len(wanted))

    def compute(self) -> dict[str, float]:
        """Returns ``rouge1``, ``rouge2`` and ``rougeL``."""
        return {name: 100 * total / self._pairs for name, total in self._sums.items()}


def _words(text: str) -> list[str]:
    """Returns the runs of letters, marks and digits of any script, in lower case."""
    return "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in text.lower()).split()


def _overlap(written: Sequence[str], wanted: Sequence[str], size: int) -> float:
    """Returns the F1 of the n-grams of ``size`` words; one that is wanted twice counts twice if written twice."""
    ngrams = [Counter(zip(*(words[begin:] for begin in range(size)), strict=False)) for words in (written, wanted)]
    return _f1((ngrams[0] & ngrams[1]).total(), ngrams[0].total(), ngrams[1].total())


def _common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence (bit-parallel, Hyyrö 2004): one bit a word of ``one``."""
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    everything = (1 << len(one)) - 1
    free = everything
    for word in other:
        matched = free & places.get(word, 0)
        free = (free + matched | free - matched) & everything
    return len(one) - free.bit_count()


def _f1(common: int, written: int, wanted: int) -> float:
    """Returns the harmonic mean of ``common / written`` and ``common / wanted``."""
    return 2 * common / (written + wanted) if common else 0.0


class ExactMatch(TextMetric):
    """The percentage of texts that are the wanted ones, white space around them aside."""

    name = "exact-match"

    def __init__(self) -> None:
        self._pairs, self._equal = 0, 0

    def update(self, prediction: str, reference: str) -> None:
        """Compares one pair."""
        self._pairs += 1
        self._equal += prediction.strip() == reference.strip()

    def compute(self) -> dict[str, float]:
        """Returns ``exact_match``."""
        return {"exact_match": 100 * self._equal / self._pairs}
