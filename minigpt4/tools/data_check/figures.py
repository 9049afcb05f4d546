"""Figures: how many samples are good, bad and why, of what kind and how long, what is cut."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minigpt4.datasets.samples import BadSample, RawSample, Text

if TYPE_CHECKING:  # a file is looked at without the packages of a language model
    from minigpt4.tools.data_check.tokens import Reader

_SHOWN = 5  # bad samples that are printed
_BARS, _WIDEST = 10, 40  # of a histogram: lines, and characters of the longest
_LONGEST = 100_000  # tokens or words; longer ones count as that, so that no file fills the memory


@dataclass
class Tally:
    """What is found in a data set, or in shards."""

    good: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    first: list[BadSample] = field(default_factory=list)
    seconds: float = 0.0

    def add_bad(self, sample: BadSample) -> None:
        self.causes[sample.cause] += 1
        self.first += [sample] if len(self.first) < _SHOWN else []

    @property
    def bad(self) -> int:
        return self.causes.total()

    @property
    def total(self) -> int:
        """Good and bad ones; a whole shard is none, and one that repeats an id is a good one."""
        none = sum(count for cause, count in self.causes.items() if cause.endswith(" shard"))
        return self.good + self.bad - none - self.causes["duplicate id"]

    @property
    def rate(self) -> float:
        """Samples in a second."""
        return self.total / max(self.seconds, 1e-9)

    def bad_lines(self, head: str, width: int, indent: str = "") -> Iterator[str]:
        """Counts by cause, and the first bad ones."""
        for cause, count in self.causes.most_common():
            yield f"  {head}{cause:<{width}}{count:>9,}"
        yield from (f"{indent}for example {bad.key}: {bad.reason}" for bad in self.first)

    def as_json(self, unit: str) -> dict[str, Any]:
        return {
            unit: self.total,
            "good": self.good,
            "bad": dict(self.causes.most_common()),
            "seconds": round(self.seconds, 3),
            f"{unit}_per_second": round(self.rate, 1),
        }


@dataclass(kw_only=True)
class Figures(Tally):
    """What is found in one data set."""

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
        said = _answers(sample.text)
        kind = "instructions" if len(said) == 1 else "conversations"
        self.kinds["captions" if isinstance(sample.text, str) else kind] += 1
        lengths = [len(words.split()) for words in said]
        if self.reader:
            lengths, positions = self.reader.lengths(sample, number)
            self.rows[min(positions, _LONGEST)] += 1
            self.cut += sum(length > self.reader.max_txt_len for length in lengths)
            longest = self.reader.longest
            self.overlong += longest is not None and positions > longest
        self.answers.update(min(length, _LONGEST) for length in lengths)

    @property
    def unit(self) -> str:
        return "tokens" if self.reader else "words"

    def lines(self) -> Iterator[str]:
        yield f"{self.name}: {self.total:,} rows, {self.bad:,} of them bad; {self.rate:,.0f} rows/s"
        for kind, count in self.kinds.most_common():
            yield f"  {kind:<24}{count:>9,}"
        for images, count in sorted(self.images.items()):
            kind = "without an image" if not images else f"with {images} image{'s'[: images > 1]}"
            yield f"  {kind:<24}{count:>9,}"
        yield from _histogram(f"{self.unit} of an answer", self.answers)
        yield from _histogram("positions of a row", self.rows)
        if self.reader:
            share = self.cut / max(self.answers.total(), 1)
            yield (
                f"  {self.cut:,} answers ({share:.1%}) are longer than model.max_txt_len "
                f"{self.reader.max_txt_len}, and cut"
            )
        if self.overlong:
            yield f"  {self.overlong:,} rows are longer than the language model reads, and cut"
        yield from self.bad_lines("bad: ", 19, "  ")

    def as_json(self, unit: str = "rows") -> dict[str, Any]:
        answers = self.answers.total()
        return {
            "name": self.name,
            **super().as_json(unit),
            "kinds": dict(self.kinds.most_common()),
            "images": {str(images): count for images, count in sorted(self.images.items())},
            "answers": answers,
            "unit": self.unit,
            "longest_answer": max(self.answers, default=0),
            "cut": self.cut,
            "cut_share": self.cut / answers if answers else 0.0,
            "overlong": self.overlong,
        }


@dataclass
class ShardReport:
    """What one shard holds."""

    good: int = 0
    repeated: int = 0  # samples with the key of an earlier one
    bad: list[BadSample] = field(default_factory=list)


@dataclass(kw_only=True)
class ShardFigures(Tally):
    """What all shards hold."""

    shards: list[str]
    repeated: int = 0

    def add(self, report: ShardReport) -> None:
        self.good += report.good
        self.repeated += report.repeated
        for bad in report.bad:
            self.add_bad(bad)

    def lines(self) -> list[str]:
        lines = [
            f"{len(self.shards):,} shards, {self.causes['missing shard']:,} of them missing; "
            f"{self.total:,} samples, {self.good:,} of them good; {self.rate:,.0f} samples/s",
            *self.bad_lines("", 20),
        ]
        if self.repeated:
            lines.append(f"{self.repeated:,} good samples have the key of an earlier one")
        return lines

    def as_json(self, unit: str = "samples") -> dict[str, Any]:
        missing = self.causes["missing shard"]
        own = {"shards": len(self.shards), "missing_shards": missing}
        return {**own, **super().as_json(unit), "repeated_keys": self.repeated}


def _answers(text: Text) -> list[str]:
    if isinstance(text, str):
        return [text]
    return [turn.text for turn in text if turn.speaker == "assistant"]


def _histogram(title: str, lengths: Counter[int]) -> Iterator[str]:
    """Counts of lengths in bars of equal width."""
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
