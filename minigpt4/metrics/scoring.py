"""Scoring: rows and names of metrics → each row's scores, and the figures of all."""

import inspect
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minigpt4.errors import MiniGPT4Error, one_line
from minigpt4.metrics.coverage import Judge
from minigpt4.metrics.figures import Figure, LowerIsBetter, Metric, Row
from minigpt4.metrics.hallucination import Objects
from minigpt4.registry import METRICS


@dataclass(frozen=True)
class Parts:
    """What metrics may need beside rows; each takes what its constructor names.

    Attributes:
        judge: Whom to ask whether a description covers a caption.
        objects: Words for objects, and those of images.
    """

    judge: Judge | None = None
    objects: Objects | None = None


@dataclass(frozen=True)
class Scores:
    """What the named metrics find in rows.

    Attributes:
        rows: Scores of each row by metric; one that the row cannot have is left out.
        means: The figure of each metric over all rows: their mean, or what stands for it. Left
            out where a judge was clear about none.
        notes: What metrics say about each row beside its scores.
        counts: For each metric what it met how often; ``unscored`` are rows that lack what it
            needs.
        figures: Of the same metrics.
    """

    rows: list[dict[str, float]]
    means: dict[str, float]
    notes: list[dict[str, Any]]
    counts: dict[str, dict[str, int]]
    figures: dict[str, Figure]

    def intervals(self, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Of each metric the 95 % interval, by bootstrap over the rows."""
        return {name: figure.interval(seed) for name, figure in self.figures.items()}


def score_rows(names: Sequence[str], rows: Sequence[Row], parts: Parts | None = None) -> Scores:
    """Every named metric of rows.

    Args:
        names: Of registered metrics.
        rows: Each with ``output``, ``references`` and what else a metric looks at.
        parts: What metrics may need beside them.

    Raises:
        MiniGPT4Error: when a metric fails, gives anything but a number, or finds no row that it
            can score.
    """
    metrics = build_metrics(names, parts)
    figures = {name: _measure(name, metric, rows) for name, metric in metrics.items()}
    if not rows:
        return Scores([], {}, [], {}, {})
    scores: list[dict[str, float]] = [{} for _ in rows]
    notes: list[dict[str, Any]] = [{} for _ in rows]
    counts: dict[str, dict[str, int]] = {}
    for name, figure in figures.items():
        for row, score in zip(scores, figure.scores, strict=True):
            if score is not None:
                row[name] = score
        for note, told in zip(notes, figure.notes, strict=False):
            note |= told
        unscored = sum(score is None for score in figure.scores)
        found = {**figure.counts, **({"unscored": unscored} if unscored else {})}
        if found:
            counts[name] = found
    known = {name: figure for name, figure in figures.items() if figure.known}
    means = {name: figure.whole() for name, figure in known.items()}
    return Scores(scores, means, notes, counts, known)


def build_metrics(names: Sequence[str], parts: Parts | None = None) -> dict[str, Metric]:
    """The metrics of these names, ready to measure.

    Raises:
        MiniGPT4Error: for an unknown name, a library that is not installed, a part that is
            missing.
    """
    found: dict[str, Metric] = {}
    for name in names:
        entry = METRICS.get(name)
        if inspect.isclass(entry):
            found[name] = METRICS.build(name, {}, **vars(parts or Parts()))
        else:
            found[name] = _Plain(name, entry)
    return found


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

    def measure(self, rows: Sequence[Row]) -> Figure:
        return Figure([self._score(row["output"], row["references"]) for row in rows])

    def _score(self, output: str, references: Sequence[str]) -> float | None:
        scores = []
        for reference in references:
            told = f"the output {output!r:.60} with the reference {reference!r:.60}"
            try:
                score = float(self._function(output, reference))
            except Exception as error:  # whatever the user's own metric does
                raise MiniGPT4Error(
                    f"run.metrics: {self._name} fails on {told} "
                    f"({type(error).__name__}: {one_line(error)})"
                ) from error
            if not math.isfinite(score):
                raise MiniGPT4Error(
                    f"run.metrics: {self._name} gives {score} for {told}; "
                    "a metric gives a finite number"
                )
            scores.append(score)
        return self._best(scores) if scores else None


def _measure(name: str, metric: Metric, rows: Sequence[Row]) -> Figure:
    if not rows:
        return Figure([])
    try:
        figure = metric.measure(rows)
    except MiniGPT4Error:
        raise
    except Exception as error:  # whatever the user's own metric does
        raise MiniGPT4Error(
            f"run.metrics: {name} fails ({type(error).__name__}: {one_line(error)})"
        ) from error
    if len(figure.scores) != len(rows):
        text = f"gives {len(figure.scores):,} scores for {len(rows):,} rows; one for each is needed"
        raise MiniGPT4Error(f"run.metrics: {name} {text}")
    known = [score for score in figure.scores if score is not None]
    if not known and not figure.counts:
        text = f"none of the {len(rows):,} samples has what it needs: {metric.needs}"
        raise MiniGPT4Error(f"run.metrics: {name}: {text}")
    if not all(map(math.isfinite, known)):
        raise MiniGPT4Error(f"run.metrics: {name} gives a number that is not finite")
    return figure
