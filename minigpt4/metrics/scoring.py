"""Scoring: rows and names of metrics → each row's scores, and the figures of all."""

import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minigpt4.errors import MiniGPT4Error, one_line
from minigpt4.metrics.coverage import Judge
from minigpt4.metrics.hallucination import ObjectWords
from minigpt4.metrics.metric import Figure, LowerIsBetter, Metric, Row
from minigpt4.registry import METRICS


@dataclass(frozen=True)
class Parts:
    """What metrics may need in addition to rows; each takes what its constructor names."""

    judge: Judge | None = None
    object_words: ObjectWords | None = None  # those of COCO's 80 categories by default
    image_objects: Mapping[str, Sequence[str]] | None = None  # by file name without suffix


@dataclass(frozen=True)
class Scores:
    """What the named metrics find in rows.

    Attributes:
        rows: Scores of each row by metric, without those that the row cannot have.
        means: Figure of each metric over all rows, if any was scored: a mean, or what replaces it.
        notes: Notes of metrics on each row.
        counts: Counts of each metric; ``unscored`` are rows that lack what it needs.
        figures: Figures of the metrics in ``means``.
    """

    rows: list[dict[str, float]]
    means: dict[str, float]
    notes: list[dict[str, Any]]
    counts: dict[str, dict[str, int]]
    figures: dict[str, Figure]

    def intervals(self, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Return the 95 % interval of each metric, by bootstrap over the rows."""
        return {name: figure.interval(seed) for name, figure in self.figures.items()}


def score_rows(names: Sequence[str], rows: Sequence[Row], parts: Parts | None = None) -> Scores:
    """Score rows (``output``, ``references`` and what metrics need) with every named metric.

    Raises:
        MiniGPT4Error: when a metric fails, gives anything but a number, or finds no row that it
            can score.
    """
    scores = Scores([{} for _ in rows], {}, [{} for _ in rows], {}, {})
    for name, metric in build_metrics(names, parts).items():
        if not rows:
            continue
        figure = _measure(name, metric, rows)
        for row, score in zip(scores.rows, figure.scores, strict=True):
            if score is not None:
                row[name] = score
        for row_notes, own in zip(scores.notes, figure.notes, strict=False):
            row_notes |= own
        unscored = len(rows) - len(figure.known)
        if found := {**figure.counts, **({"unscored": unscored} if unscored else {})}:
            scores.counts[name] = found
        if figure.known:
            scores.figures[name] = figure
            scores.means[name] = figure.whole()
    return scores


def build_metrics(names: Sequence[str], parts: Parts | None = None) -> dict[str, Metric]:
    """Build the metrics of these names.

    Raises:
        MiniGPT4Error: for an unknown name, a library that is not installed, a part that is
            missing.
    """
    entries = {name: METRICS.get(name) for name in names}
    injected = vars(parts or Parts())
    return {
        name: METRICS.build(name, {}, **injected) if inspect.isclass(entry) else _Plain(name, entry)
        for name, entry in entries.items()
    }


def lower_is_better(name: str) -> bool:
    """Whether the best model has the lowest figure of a metric.

    Raises:
        ConfigError: for an unknown name.
    """
    entry = METRICS.get(name)
    if inspect.isclass(entry) and issubclass(entry, Metric):
        return entry.lower_is_better
    try:
        given = typing.get_type_hints(entry, include_extras=True).get("return")
    except (NameError, TypeError):  # a callable of another kind, or hints that name nothing
        return False
    return LowerIsBetter in typing.get_args(given)


class _Plain(Metric):
    """A function ``(output, reference) -> float``; of several references the best one counts."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        self._function = function
        self._best = min if lower_is_better(name) else max

    def score(self, row: Row) -> float | None:
        scores = [self._score_pair(row["output"], reference) for reference in row["references"]]
        return self._best(scores) if scores else None

    def _score_pair(self, output: str, reference: str) -> float:
        try:
            score = float(self._function(output, reference))
            if not math.isfinite(score):
                raise ValueError(f"gives {score}; a metric gives a finite number")
        except Exception as error:  # whatever the user's own metric does
            raise MiniGPT4Error(
                f"run.metrics: {self._name} fails on the output {output!r:.60} with the reference "
                f"{reference!r:.60} ({type(error).__name__}: {one_line(error)})"
            ) from error
        return score


def _measure(name: str, metric: Metric, rows: Sequence[Row]) -> Figure:
    try:
        figure = metric.measure(rows)
    except MiniGPT4Error:
        raise
    except Exception as error:  # whatever the user's own metric does
        text = f"run.metrics: {name} fails ({type(error).__name__}: {one_line(error)})"
        raise MiniGPT4Error(text) from error
    if len(figure.scores) != len(rows):
        text = f"gives {len(figure.scores):,} scores for {len(rows):,} rows; one for each is needed"
        raise MiniGPT4Error(f"run.metrics: {name} {text}")
    if not figure.known and not figure.counts:
        text = f"none of the {len(rows):,} samples has what it needs: {metric.needs}"
        raise MiniGPT4Error(f"run.metrics: {name}: {text}")
    if not all(math.isfinite(score) for score in figure.scores if score is not None):
        raise MiniGPT4Error(f"run.metrics: {name} gives a number that is not finite")
    return figure
