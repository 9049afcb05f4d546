"""Coverage: how many of an image's reference captions a generated description covers.

The paper asks ChatGPT about each caption, yes or no: ``judged_captions``. ``coverage`` compares
words and needs no judge. Their names differ because their figures cannot be compared.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Protocol

from minigpt4.errors import MiniGPT4Error
from minigpt4.metrics.metric import Figure, Metric, Row, load_library, words_of
from minigpt4.registry import METRICS, Hidden

_ENOUGH = 2 / 3  # of a caption's content words
# What a sentence is built with, and what describes images as such.
_FUNCTION_WORDS = """
a an the this that these those and or but nor so yet if then than as at by for from in into of
off on onto out over per to toward towards under up upon via with within without about above
across after against along among around before behind below beneath beside besides between
beyond down during inside near outside past since through throughout till until while where when
which who whom whose what why how there here it its it's he him his she her hers they them their
theirs we us our ours you your yours i me my mine himself herself itself themselves is are was
were be been being am do does did doing done has have had having can could may might must shall
should will would not no very too also just only even still again both each every either neither
some any all many much more most few several such other another same own one ones top next
front back side image picture photo photograph shows showing shown show depicts depicting see
seen appears appear appearing
"""
_SAY_NOTHING = frozenset(_FUNCTION_WORDS.split())

Verdict = Literal["yes", "no", "unclear", "no reply"]


class Judge(Protocol):
    """Says whether a description covers a caption."""

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Return the verdict on each pair of description and caption."""


class _Coverage(Metric):
    """Scores each row by the verdicts on its captions; only yes and no count.

    ``note`` names the verdicts in a row's notes; ``score`` takes whether each caption is covered.
    """

    def __init__(self, judge: Judge, note: str, score: Callable[[Sequence[bool]], float]) -> None:
        self._judge, self._note, self._score = judge, note, score

    def measure(self, rows: Sequence[Row]) -> Figure:
        pairs = [(row["output"], text) for row in rows for text in row["references"]]
        verdicts = self._judge.judge(pairs)
        left = iter(verdicts)
        scores: list[float | None] = []
        notes: list[dict[str, list[Verdict]]] = []
        for row in rows:
            own = [next(left) for _ in row["references"]]
            covered = [verdict == "yes" for verdict in own if verdict in ("yes", "no")]
            scores.append(self._score(covered) if covered else None)
            notes.append({self._note: own} if own else {})
        unsure = Counter[str](verdict for verdict in verdicts if verdict not in ("yes", "no"))
        return Figure(scores, notes=notes, counts=unsure)


@METRICS.register("coverage")
class Coverage(_Coverage):
    """Share of the captions that an output covers by its words.

    It covers a caption when it has two thirds of its content words, compared by their stems
    (Porter's, of nltk, which needs no data for it). A caption without such a word is unclear.
    """

    def __init__(self) -> None:
        stemmer = load_library("coverage", "nltk.stem.porter").PorterStemmer()
        self._stem = functools.lru_cache(maxsize=100_000)(stemmer.stem)
        super().__init__(self, "covered", lambda covered: sum(covered) / len(covered))

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Return the verdict on each pair of description and caption."""
        return [self._verdict(self._stems(one), self._stems(other)) for one, other in pairs]

    def _verdict(self, said: set[str], wanted: set[str]) -> Verdict:
        if not wanted:
            return "unclear"
        return "yes" if len(wanted & said) / len(wanted) >= _ENOUGH else "no"

    def _stems(self, text: str) -> set[str]:
        words = (word for word in words_of(text) if word not in _SAY_NOTHING)
        return {self._stem(word.removesuffix("'s")) for word in words}


@METRICS.register("judged_captions")
class JudgedCaptions(_Coverage):
    """Number of an image's captions that an output covers, says a judge; the paper's 2.22."""

    def __init__(self, judge: Annotated[Judge | None, Hidden] = None) -> None:
        if judge is None:
            raise MiniGPT4Error(
                "run.metrics: judged_captions asks a judge: name a server with python -m minigpt4 "
                "evaluate --api-base URL --model NAME; coverage goes by words without one"
            )
        super().__init__(judge, "judged", lambda covered: float(sum(covered)))
