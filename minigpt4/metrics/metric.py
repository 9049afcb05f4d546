"""Metric: the base class, the figure that it finds in rows, and what several metrics need."""

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from minigpt4.errors import MiniGPT4Error

Row = Mapping[str, Any]  # output, references, and what else the data set says of the sample
Floats = npt.NDArray[np.float64]

_RESAMPLES = 1000
_TAILS = (2.5, 97.5)  # per cent: the interval of 95
_WORD = re.compile(r"\w+(?:['’]\w+)*")


class LowerIsBetter:
    """Marks what a metric function gives: ``-> Annotated[float, LowerIsBetter]``."""


@dataclass(frozen=True)
class Figure:
    """What a metric finds in rows.

    Attributes:
        scores: Score of each row; None where the row lacks what the metric needs.
        sums: Sums ``[rows, k]`` over rows, where the figure is not the mean of the scores (BLEU).
        of_sums: Function from sums ``[k]`` to the figure.
        notes: Notes on each row in addition to its score, or empty.
        counts: Counts by name.
    """

    scores: Sequence[float | None]
    sums: Floats | None = None
    of_sums: Callable[[Floats], float] | None = None
    notes: Sequence[Mapping[str, Any]] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def known(self) -> list[int]:
        """The rows that could be scored."""
        return [number for number, score in enumerate(self.scores) if score is not None]

    def whole(self) -> float:
        """Return the figure of all rows that could be scored; at least one."""
        sums, of_sums = self._additive()
        return of_sums(sums.sum(axis=0))

    def interval(self, seed: int) -> tuple[float, float]:
        """Return the 95 % interval, by bootstrap over the rows."""
        sums, of_sums = self._additive()
        numbers, count = np.random.default_rng(seed), len(sums)
        found = []
        for _ in range(_RESAMPLES):
            times = np.bincount(numbers.integers(count, size=count), minlength=count)
            found.append(of_sums(times @ sums))
        low, high = np.percentile(found, _TAILS)
        return float(low), float(high)

    def _additive(self) -> tuple[Floats, Callable[[Floats], float]]:
        if self.sums is not None and self.of_sums is not None:
            return self.sums[self.known], self.of_sums
        pairs = [(score, 1.0) for score in self.scores if score is not None]
        return np.array(pairs), lambda sums: float(sums[0] / sums[1])


class Metric:
    """A metric over rows; a subclass is registered under the name of its figure.

    It defines :meth:`score`, or :meth:`measure` where the figure is not the mean of row scores.

    A constructor may take any of the parts that :class:`~minigpt4.metrics.scoring.Parts`
    has, by name and ``Hidden``.

    Attributes:
        lower_is_better: Whether the best model has the lowest figure.
        needs: What a row must have to be scored, for messages.
    """

    lower_is_better: ClassVar[bool] = False
    needs: ClassVar[str] = "reference"

    def __init_subclass__(cls) -> None:
        if cls.score is Metric.score and cls.measure is Metric.measure:
            raise TypeError(f"the metric {cls.__name__} defines neither score nor measure")

    def measure(self, rows: Sequence[Row]) -> Figure:
        """Return the figure of the rows; at least one."""
        return Figure([self.score(row) for row in rows])

    def score(self, row: Row) -> float | None:
        """Return the score of a row; None where it lacks what the metric needs."""
        raise NotImplementedError


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower().replace("’", "'"))


def load_library(metric: str, module: str) -> Any:
    """Import a module of the extra ``metrics``, or raise a MiniGPT4Error that names the extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise MiniGPT4Error(
            f"run.metrics: {metric} needs {package}: pip install 'minigpt4[metrics]'"
        ) from error
