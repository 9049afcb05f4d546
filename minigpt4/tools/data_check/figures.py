"""Figures: how many rows of what kind a data set has, how long they are, what is cut."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minigpt4.datasets.samples import BadSample, RawSample, Text

if TYPE_CHECKING:  # a file is looked at without the packages of a language model
    from minigpt4.tools.data_check.reader import Reader

_SHOWN = 5  # bad rows that are printed
_BARS, _WIDEST = 10, 40  # of a histogram: lines, and characters of the longest
_LONGEST = 100_000  # tokens or words; longer ones count as that, so that no file fills the memory


@dataclass
class Figures:
    """What is found in one data set."""

    name: str
    reader: "Reader | None"
    good: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)  # tokens, or words, of each answer
    rows: Counter[int] = field(default_factory=Counter)  # positions of each row
    cut: int = 0  # answers longer than max_txt_len
    overlong: int = 0  # rows longer than the language model reads
    causes: Counter[str] = field(default_factory=Counter)
    first: list[BadSample] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, sample: RawSample | BadSample) -> None:
        if isinstance(sample, BadSample):
            self.causes[sample.cause] += 1
            self.first += [sample] if len(self.first) < _SHOWN else []
            return
        number, self.good = self.good, self.good + 1
        self.images[len(sample.images)] += 1
        self.kinds[_kind(sample.text)] += 1
        if self.reader is None:
            self._note(self.answers, [len(words.split()) for words in _answers(sample.text)])
            return
        answers, positions = self.reader.lengths(sample, number)
        self._note(self.answers, answers)
        self._note(self.rows, [positions])
        self.cut += sum(length > self.reader.max_txt_len for length in answers)
        longest = self.reader.longest
        self.overlong += longest is not None and positions > longest

    @staticmethod
    def _note(lengths: Counter[int], found: Sequence[int]) -> None:
        lengths.update(min(length, _LONGEST) for length in found)

    @property
    def bad(self) -> int:
        return self.causes.total()

    @property
    def total(self) -> int:
        """Rows, the bad ones too; one that repeats an id is one of the good ones, besides."""
        whole = sum(count for cause, count in self.causes.items() if cause.endswith(" shard"))
        return self.good + self.bad - whole - self.causes["duplicate id"]

    def lines(self) -> Iterator[str]:
        rate = self.total / max(self.seconds, 1e-9)
        yield f"{self.name}: {self.total:,} rows, {self.bad:,} of them bad; {rate:,.0f} rows/s"
        for kind, count in self.kinds.most_common():
            yield f"  {kind:<24}{count:>9,}"
        for images, count in sorted(self.images.items()):
            kind = "without an image" if not images else f"with {images} image{'s'[: images > 1]}"
            yield f"  {kind:<24}{count:>9,}"
        unit = "tokens" if self.reader else "words"
        yield from _histogram(f"{unit} of an answer", self.answers)
        yield from _histogram("positions of a row", self.rows)
        if self.reader:
            share = self.cut / max(self.answers.total(), 1)
            yield (
                f"  {self.cut:,} answers ({share:.1%}) are longer than model.max_txt_len "
                f"{self.reader.max_txt_len}, and cut"
            )
        if self.reader and self.overlong:
            yield f"  {self.overlong:,} rows are longer than the language model reads, and cut"
        for cause, count in self.causes.most_common():
            yield f"  bad: {cause:<19}{count:>9,}"
        yield from (f"  for example {bad.key}: {bad.reason}" for bad in self.first)

    def as_json(self) -> dict[str, Any]:
        answers = self.answers.total()
        return {
            "name": self.name,
            "rows": self.total,
            "good": self.good,
            "bad": dict(self.causes.most_common()),
            "kinds": dict(self.kinds.most_common()),
            "images": {str(images): count for images, count in sorted(self.images.items())},
            "answers": answers,
            "unit": "tokens" if self.reader else "words",
            "longest_answer": max(self.answers, default=0),
            "cut": self.cut,
            "cut_share": self.cut / answers if answers else 0.0,
            "overlong": self.overlong,
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.total / max(self.seconds, 1e-9), 1),
        }


def _kind(text: Text) -> str:
    if isinstance(text, str):
        return "captions"
    answers = len(_answers(text))
    return "instructions" if answers == 1 else "conversations"


def _answers(text: Text) -> list[str]:
    if isinstance(text, str):
        return [text]
    return [turn.text for turn in text if turn.speaker == "assistant"]


def _histogram(title: str, lengths: Counter[int]) -> Iterator[str]:
    """Counts of lengths in bars of equal width."""
    if not lengths:
        return
    low, high, total = min(lengths), max(lengths), lengths.total()
    ordered, before = sorted(lengths.items()), 0
    marks: dict[float, int] = {}
    for length, count in ordered:
        before += count
        for share in (0.5, 0.95):
            if before >= share * total:
                marks.setdefault(share, length)
    yield f"  {title}: {low:,} to {high:,}, median {marks[0.5]:,}, 95 % up to {marks[0.95]:,}"
    width = (high - low) // _BARS + 1
    bars: Counter[int] = Counter()
    for length, count in ordered:
        bars[(length - low) // width] += count
    for bar in range(max(bars) + 1):
        start = low + bar * width
        drawn = "#" * -(-_WIDEST * bars[bar] // max(bars.values()))
        yield f"    {start:>7,}-{start + width - 1:<7,} {bars[bar]:>9,} {drawn}"
