"""Figures: how many samples are good, bad and why, of what kind and how long, what is cut."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minigpt4.datasets.samples import BadSample, RawSample

if TYPE_CHECKING:  # a file is checked without the packages of a language model
    from minigpt4.tools.data_check.tokens import Reader

_SHOWN = 5  # bad samples that are printed
_BARS, _WIDEST = 10, 40  # of a histogram: lines, and characters of the longest


@dataclass
class Tally:
    """Counts of good and bad samples."""

    good: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    first: list[BadSample] = field(default_factory=list)
    seconds: float = 0.0

    def add_bad(self, sample: BadSample) -> None:
        self.causes[sample.cause] += 1
        self.first += [sample] if len(self.first) < _SHOWN else []

    @property
    def total(self) -> int:
        """All samples; a bad shard is not one, and one that repeats an id was counted as good."""
        bad = (c for c in self.causes if not c.endswith(" shard") and c != "duplicate id")
        return self.good + sum(self.causes[cause] for cause in bad)

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.total / max(self.seconds, 1e-9)

    def bad_lines(self, head: str, width: int, indent: str = "") -> Iterator[str]:
        """Yield counts by cause, and the first bad samples."""
        for cause, count in self.causes.most_common():
            yield f"  {head}{cause:<{width}}{count:>9,}"
        yield from (f"{indent}for example {bad.key}: {bad.reason}" for bad in self.first)

    def counts(self, unit: str) -> dict[str, Any]:
        return {
            unit: self.total,
            "good": self.good,
            "bad": dict(self.causes.most_common()),
            "seconds": round(self.seconds, 3),
            f"{unit}_per_second": round(self.rate, 1),
        }


@dataclass(kw_only=True)
class Figures(Tally):
    """Figures of one data set."""

    name: str
    reader: "Reader | None"
    kinds: Counter[str] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)  # tokens, or words, of each answer
    rows: Counter[int] = field(default_factory=Counter)  # positions of each row
    cut: int = 0  # answers longer than max_txt_len
    overlong: int = 0  # rows longer than the language model reads

    def add(self, sample: RawSample | BadSample) -> None:
        if isinstance(sample, BadSample):
            self.add_bad(sample)
            return
        number, self.good = self.good, self.good + 1
        self.images[len(sample.images)] += 1
        if isinstance(sample.text, str):
            kind, answers = "captions", [sample.text]
        else:
            answers = [turn.text for turn in sample.text if turn.speaker == "assistant"]
            kind = "instructions" if len(answers) == 1 else "conversations"
        self.kinds[kind] += 1
        lengths = [len(answer.split()) for answer in answers]
        if self.reader:
            lengths, positions = self.reader.lengths(sample, number)
            self.rows[positions] += 1
            self.cut += sum(length > self.reader.max_txt_len for length in lengths)
            self.overlong += positions > (self.reader.longest or math.inf)
        self.answers.update(lengths)

    @property
    def unit(self) -> str:
        return "tokens" if self.reader else "words"

    def lines(self) -> Iterator[str]:
        bad = self.causes.total()
        yield f"{self.name}: {self.total:,} rows, {bad:,} of them bad; {self.rate:,.0f} rows/s"
        for kind, count in self.kinds.most_common():
            yield f"  {kind:<24}{count:>9,}"
        for images, count in sorted(self.images.items()):
            kind = "without an image" if not images else f"with {images} image{'s'[: images > 1]}"
            yield f"  {kind:<24}{count:>9,}"
        yield from _histogram(f"{self.unit} of an answer", self.answers)
        yield from _histogram("positions of a row", self.rows)
        if self.reader:
            longer = f"longer than model.max_txt_len {self.reader.max_txt_len}, and cut"
            yield f"  {self.cut:,} answers ({self._cut_share:.1%}) are {longer}"
        if self.overlong:
            yield f"  {self.overlong:,} rows are longer than the language model reads, and cut"
        yield from self.bad_lines("bad: ", 19, "  ")

    @property
    def _cut_share(self) -> float:
        return self.cut / max(self.answers.total(), 1)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.counts("rows"),
            "kinds": dict(self.kinds.most_common()),
            "images": {str(images): count for images, count in sorted(self.images.items())},
            "answers": self.answers.total(),
            "unit": self.unit,
            "longest_answer": max(self.answers, default=0),
            "cut": self.cut,
            "cut_share": self._cut_share,
            "overlong": self.overlong,
        }


def _histogram(title: str, lengths: Counter[int]) -> Iterator[str]:
    """Yield counts of lengths in bars of equal width."""
    if not lengths:
        return
    ordered = sorted(lengths.elements())
    low, high = ordered[0], ordered[-1]
    median, most = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95))
    yield f"  {title}: {low:,} to {high:,}, median {median:,}, 95 % up to {most:,}"
    width = (high - low) // _BARS + 1
    bars = Counter((length - low) // width for length in ordered)
    for bar in range(max(bars) + 1):
        start = low + bar * width
        drawn = "#" * math.ceil(_WIDEST * bars[bar] / max(bars.values()))
        yield f"    {start:>7,}-{start + width - 1:<7,} {bars[bar]:>9,} {drawn}"
