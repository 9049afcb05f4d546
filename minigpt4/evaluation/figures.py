"""Figures of a validation: sums over target tokens, and which value is the best."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt4.metrics import lower_is_better

if TYPE_CHECKING:
    from minigpt4.models.minigpt4 import TargetScores

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
    """Sums over the target tokens of a data set."""

    tokens: int = 0
    loss: float = 0.0
    hits: int = 0

    def add(self, other: "Sums | TargetScores") -> None:
        self.tokens += other.tokens
        self.loss += other.loss
        self.hits += other.hits

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
    """Return a figure of one data set, or its mean over all; None where it is not finite."""
    dataset, _, figure = name.rpartition("/")
    values = [own[figure] for key, own in figures.items() if figure in own and dataset in ("", key)]
    mean = sum(values) / len(values) if values else math.nan
    return mean if math.isfinite(mean) else None
