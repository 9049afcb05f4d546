"""N-grams: BLEU, chrF, ROUGE-L and CIDEr, how many of a reference's word sequences an output has.

METEOR is none of them: its data (WordNet) is no part of any package. chrF stands in for it: it
forgives another ending of a word as METEOR's stems do.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import exp, log, sqrt
from typing import Any

import numpy as np

from minigpt4.metrics.figures import Figure, Floats, Metric, Row
from minigpt4.metrics.libraries import load_library
from minigpt4.metrics.words import words_of
from minigpt4.registry import METRICS

_LONGEST = 4  # words of CIDEr's n-grams
_SIGMA = 6.0  # words by which CIDEr-D lets lengths differ

Grams = Counter[tuple[str, ...]]


class _Corpus(Metric):
    """A metric of sacrebleu: counts are added up over rows, and scored once; 0 to 100."""

    def __init__(self, scorer: Any, whole: Any) -> None:
        self._scorer = scorer  # of one row
        self._whole = whole

    def measure(self, rows: Sequence[Row]) -> Figure:
        known = [row for row in rows if row["references"]]
        if not known:
            return Figure([None for _ in rows])
        outputs = [row["output"] for row in known]
        most = max(len(row["references"]) for row in known)
        # A stream of each row's n-th reference; None where a row has fewer.
        streams = [[[*row["references"], *[None] * most][n] for row in known] for n in range(most)]
        counts = np.array(self._whole._extract_corpus_statistics(outputs, streams), dtype=float)
        scores: list[float | None] = []
        sums = np.zeros((len(rows), counts.shape[1]))
        place = 0
        for number, row in enumerate(rows):
            if not row["references"]:
                scores.append(None)
                continue
            sums[number] = counts[place]
            place += 1
            found = self._scorer.sentence_score(row["output"], row["references"])
            scores.append(float(found.score))
        return Figure(scores, sums, self._of_counts)

    def _of_counts(self, counts: Floats) -> float:
        return float(self._whole._compute_score_from_stats([int(n) for n in counts]).score)


@METRICS.register("bleu")
class Bleu(_Corpus):
    """BLEU-4 of all outputs together, by sacrebleu with its own tokeniser (13a).

    A row's own score leaves out the lengths of n-grams that it is too short for.
    """

    def __init__(self) -> None:
        bleu = load_library("bleu", "sacrebleu.metrics").BLEU
        super().__init__(bleu(effective_order=True), bleu())


@METRICS.register("chrf")
class ChrF(_Corpus):
    """ChrF2 of all outputs together, by sacrebleu: characters, so that inflections half count."""

    def __init__(self) -> None:
        chrf = load_library("chrf", "sacrebleu.metrics").CHRF()
        super().__init__(chrf, chrf)


@METRICS.register("rouge_l")
class RougeL(Metric):
    """ROUGE-L by rouge-score, without stemming: F1 of the longest common subsequence of words."""

    def __init__(self) -> None:
        scorer = load_library("rouge_l", "rouge_score.rouge_scorer")
        # Its own tokeniser knows a to z alone.
        self._scorer = scorer.RougeScorer(["rougeL"], tokenizer=_Words())

    def measure(self, rows: Sequence[Row]) -> Figure:
        return Figure([self._score(row) for row in rows])

    def _score(self, row: Row) -> float | None:
        found = (self._scorer.score(other, row["output"])["rougeL"] for other in row["references"])
        return max((float(score.fmeasure) for score in found), default=None)


class _Words:
    """Words as rouge-score asks for them."""

    def tokenize(self, text: str) -> list[str]:
        return words_of(text)


@METRICS.register("cider")
class Cider(Metric):
    """CIDEr-D: n-grams weighted by how few images' references have them; 0 to 10.

    How rare an n-gram is is told by the references of all rows, in an interval's resamples too.
    Words are split here, not by the Penn Treebank tokeniser, which needs Java.

    Source: Vedantam et al., CIDEr: Consensus-based Image Description Evaluation, 2015.
    """

    def measure(self, rows: Sequence[Row]) -> Figure:
        known = [row for row in rows if row["references"]]
        images: Counter[tuple[str, ...]] = Counter()
        for row in known:
            images.update({gram for text in row["references"] for gram in _grams(text)})
        score = cache(lambda text: _Weighted(text, images, len(known)))
        return Figure([_cider(row, score) if row["references"] else None for row in rows])


class _Weighted:
    """A text's n-grams, each length by itself, weighted by frequency and rarity."""

    def __init__(self, text: str, images: Grams, count: int) -> None:
        self.weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(_LONGEST)]
        grams = _grams(text)
        for gram, times in grams.items():
            rarity = log(max(count, 1)) - log(max(images[gram], 1))
            self.weights[len(gram) - 1][gram] = times * rarity
        self.norms = [sqrt(sum(w * w for w in own.values())) for own in self.weights]
        self.length = len(words_of(text))


def _cider(row: Row, weighted: Any) -> float:
    output, total = weighted(row["output"]), 0.0
    for text in row["references"]:
        other = weighted(text)
        close = exp(-((output.length - other.length) ** 2) / (2 * _SIGMA**2))
        for own, wanted, *norms in zip(
            output.weights, other.weights, output.norms, other.norms, strict=True
        ):
            # Nothing is gained by saying an n-gram more often than the reference.
            shared = sum(
                min(weight, wanted.get(g, 0.0)) * wanted.get(g, 0.0) for g, weight in own.items()
            )
            if all(norms):
                total += close * shared / (norms[0] * norms[1])
    return 10.0 * total / _LONGEST / len(row["references"])


def _grams(text: str) -> Grams:
    words = words_of(text)
    return Counter(
        tuple(words[i : i + n]) for n in range(1, _LONGEST + 1) for i in range(len(words) - n + 1)
    )
