"""Figures of a validation: what is measured over target tokens, and which value is the best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from minigpt4.metrics import lower_is_better

FIGURES = ("loss", "token_accuracy", "perplexity")  # without generating anything
SHUFFLED = "shuffled_"  # in front of a figure's name: with another sample's picture
_FALLING = ("loss", "perplexity")

Figures = dict[str, dict[str, float]]  # data set → figure → value


@dataclass(frozen=True)
class Best:
    """The best validation so far, as ``best.json`` tells it."""

    metric: str
    value: float
    epoch: int
    step: int


@dataclass
class Sums:
    """Over the target tokens of a data set."""

    tokens: int = 0
    loss: float = 0.0
    hits: int = 0

    def add(self, other: Sequence[float]) -> None:
        self.tokens += int(other[0])
        self.loss += other[1]
        self.hits += int(other[2])

    def figures(self) -> dict[str, float]:
        loss = self.loss / self.tokens
        # Beyond what a float can hold it is told as such, not raised.
        perplexity = math.exp(loss) if loss < 700 else math.inf
        accuracy = self.hits / self.tokens
        return dict(zip(FIGURES, (loss, accuracy, perplexity), strict=True))


def is_smaller_better(name: str, mode: str = "auto") -> bool:
    """Whether the smallest value of a figure is the best."""
    figure = name.rpartition("/")[2].removeprefix(SHUFFLED)
    if mode != "auto":
        return mode == "min"
    return figure in _FALLING if figure in FIGURES else lower_is_better(figure)


def best_value(name: str, figures: Figures) -> float | None:
    """A figure's value: of one data set where it is named so, else the mean; None where it is no
    number.
    """
    dataset, _, figure = name.rpartition("/")
    values = [own[figure] for key, own in figures.items() if figure in own and dataset in ("", key)]
    mean = sum(values) / len(values) if values else math.nan
    return mean if math.isfinite(mean) else None
