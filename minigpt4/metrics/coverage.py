"""Coverage: how many of an image's reference captions a generated description covers.

The paper asks ChatGPT about each caption, yes or no. ``coverage`` and ``covered_captions`` go by
words, without anybody to ask; ``judged_coverage`` and ``judged_captions`` ask a judge. Their names
differ because their figures cannot be compared.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Protocol

from minigpt4.errors import MiniGPT4Error
from minigpt4.metrics.figures import Figure, Metric, Row
from minigpt4.metrics.words import content_words, load_stemmer
from minigpt4.registry import METRICS, Hidden

_ENOUGH = 2 / 3  # of a caption's words that say something

Verdict = Literal["yes", "no", "unclear", "no reply"]


class Judge(Protocol):
    """Says whether a description covers a caption."""

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Of each pair of description and caption."""


class WordJudge:
    """Yes where two thirds of a caption's words that say something are in the description.

    Words count by their stems; a caption without such a word is unclear.
    """

    def __init__(self, metric: str) -> None:
        self._stem = load_stemmer(metric)

    def judge(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        return [self._verdict(*pair) for pair in pairs]

    def _verdict(self, description: str, caption: str) -> Verdict:
        wanted = content_words(caption, self._stem)
        if not wanted:
            return "unclear"
        share = len(wanted & content_words(description, self._stem)) / len(wanted)
        return "yes" if share >= _ENOUGH else "no"


class _Coverage(Metric):
    """Of each row the captions with yes, or their share; what is unclear is neither yes nor no."""

    name: ClassVar[str]
    note: ClassVar[str]
    as_share: ClassVar[bool]

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def measure(self, rows: Sequence[Row]) -> Figure:
        pairs = [(row["output"], caption) for row in rows for caption in row["references"]]
        verdicts = self._judge.judge(pairs)
        left = iter(verdicts)
        told = [[next(left) for _ in row["references"]] for row in rows]
        unsure = Counter[str](v for v in verdicts if v not in ("yes", "no"))
        notes = [{self.note: own} if own else {} for own in told]
        return Figure([self._score(own) for own in told], notes=notes, counts=unsure)

    def _score(self, verdicts: Sequence[Verdict]) -> float | None:
        known = [verdict == "yes" for verdict in verdicts if verdict in ("yes", "no")]
        if not known:
            return None
        return sum(known) / len(known) if self.as_share else float(sum(known))


class _ByWords(_Coverage):
    note = "covered"

    def __init__(self) -> None:
        super().__init__(WordJudge(self.name))


class _ByJudge(_Coverage):
    note = "judged"

    def __init__(self, judge: Annotated[Judge | None, Hidden] = None) -> None:
        if judge is None:
            raise MiniGPT4Error(
                f"run.metrics: {self.name} asks a judge: name a server with python -m minigpt4 "
                "evaluate --api-base URL --model NAME; coverage goes by words without one"
            )
        super().__init__(judge)


@METRICS.register("coverage")
class Coverage(_ByWords):
    """Share of the captions that an output covers by its words."""

    name, as_share = "coverage", True


@METRICS.register("covered_captions")
class CoveredCaptions(_ByWords):
    """Number of an image's captions that an output covers by its words."""

    name, as_share = "covered_captions", False


@METRICS.register("judged_coverage")
class JudgedCoverage(_ByJudge):
    """Share of the captions that an output covers, says a judge."""

    name, as_share = "judged_coverage", True


@METRICS.register("judged_captions")
class JudgedCaptions(_ByJudge):
    """Number of an image's captions that an output covers, says a judge; the paper's 2.22."""

    name, as_share = "judged_captions", False
