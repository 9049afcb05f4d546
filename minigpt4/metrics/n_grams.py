"""N-grams: BLEU, chrF, ROUGE-L and CIDEr, how many of a reference's word sequences an output has.

METEOR is missing: its data (WordNet) is no part of any package. chrF stands in for it: it
forgives another ending of a word as METEOR's stems do.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from math import exp, hypot, log
from typing import Any

import numpy as np

from minigpt4.metrics.metric import Figure, Floats, Metric, Row, load_library, words_of
from minigpt4.registry import METRICS

_LONGEST = 4  # words of CIDEr's n-grams
_SIGMA = 6.0  # words by which CIDEr-D lets lengths differ

Gram = tuple[str, ...]


class _Corpus(Metric):
    """A metric of sacrebleu: counts are added up over rows, and scored once; 0 to 100."""

    def __init__(self, scorer: Any, whole: Any) -> None:
        self._scorer = scorer  # of one row
        self._whole = whole

    def measure(self, rows: Sequence[Row]) -> Figure:
        known = [number for number, row in enumerate(rows) if row["references"]]
        scores: list[float | None] = [None] * len(rows)
        if not known:
            return Figure(scores)
        counts = []
        for number in known:
            output, references = rows[number]["output"], rows[number]["references"]
            scores[number] = float(self._scorer.sentence_score(output, references).score)
            streams = [[text] for text in references]
            counts += self._whole._extract_corpus_statistics([output], streams)
        sums = np.zeros((len(rows), len(counts[0])))
        sums[known] = counts
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
        self._scorer = scorer.RougeScorer(["rougeL"], tokenizer=self)  # its own one knows only a–z

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text, as rouge-score asks for them."""
        return words_of(text)

    def score(self, row: Row) -> float | None:
        found = (self._scorer.score(text, row["output"])["rougeL"] for text in row["references"])
        return max((float(score.fmeasure) for score in found), default=None)


@METRICS.register("cider")
class Cider(Metric):
    """CIDEr-D: n-grams weighted by how few images' references have them; 0 to 10.

    How rare an n-gram is is told by the references of all rows, in an interval's resamples too.
    Words are split here, not by the Penn Treebank tokeniser, which needs Java.

    Source: Vedantam et al., CIDEr: Consensus-based Image Description Evaluation, 2015.
    """

    def measure(self, rows: Sequence[Row]) -> Figure:
        known = [row for row in rows if row["references"]]
        images = Counter[Gram]()
        for row in known:
            images.update({gram for text in row["references"] for gram in _grams(text)})
        weigh = cache(lambda text: _weigh(text, images, len(known)))
        return Figure([_cider(row, weigh) if row["references"] else None for row in rows])


def _weigh(text: str, images: Counter[Gram], count: int) -> list[dict[Gram, float]]:
    """Weigh a text's n-grams by frequency and rarity, each length by itself."""
    weights: list[dict[Gram, float]] = [{} for _ in range(_LONGEST)]
    for gram, times in _grams(text).items():
        rarity = log(max(count, 1)) - log(max(images[gram], 1))
        weights[len(gram) - 1][gram] = times * rarity
    return weights


def _cider(row: Row, weigh: Callable[[str], list[dict[Gram, float]]]) -> float:
    output, total = row["output"], 0.0
    for text in row["references"]:
        longer = len(words_of(output)) - len(words_of(text))
        close = exp(-(longer**2) / (2 * _SIGMA**2))
        for own, wanted in zip(weigh(output), weigh(text), strict=True):
            # Nothing is gained by saying an n-gram more often than the reference.
            shared = sum(
                min(own[gram], wanted[gram]) * wanted[gram] for gram in own if gram in wanted
            )
            norms = hypot(*own.values()) * hypot(*wanted.values())
            total += close * shared / norms if norms else 0.0
    return 10.0 * total / _LONGEST / len(row["references"])


def _grams(text: str) -> Counter[Gram]:
    words = words_of(text)
    return Counter(
        tuple(words[i : i + n]) for n in range(1, _LONGEST + 1) for i in range(len(words) - n + 1)
    )
