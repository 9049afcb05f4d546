"""Curves for drawing: smoothed over all readings, then thinned to what a chart can show."""

import math
from collections.abc import Sequence

MOST_POINTS = 600  # of one line; more cannot be told apart on a page
_FEW = 30  # readings that need no smoothing
_SPANS = 25  # a smoothed curve looks back over one part in so many of the run

Points = list[tuple[float, float]]  # step, value


def smooth(points: Sequence[tuple[float, float]]) -> Points:
    """The exponential moving average at each point, unbiased from the first one on."""
    keep = 1 - 2 / (max(1.0, len(points) / _SPANS) + 1)
    total, weight = 0.0, 0.0
    smoothed = []
    for step, value in points:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append((step, total / weight))
    return smoothed


def needs_smoothing(points: Sequence[tuple[float, float]]) -> bool:
    return len(points) > _FEW


def thin(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> Points:
    """At most so many of the points: the lowest and the highest of each stretch, first and last."""
    if len(points) <= most:
        return list(points)
    stretches = max(1, (most - 2) // 2)
    kept = {0, len(points) - 1}
    for stretch in range(stretches):
        begin = stretch * len(points) // stretches
        members = range(begin, (stretch + 1) * len(points) // stretches)
        kept.add(min(members, key=lambda i: points[i][1]))
        kept.add(max(members, key=lambda i: points[i][1]))
    return [points[i] for i in sorted(kept)]


def window_mean(points: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """Mean of the values behind ``begin`` up to ``end``; NaN without any."""
    values = [value for step, value in points if begin < step <= end]
    return sum(values) / len(values) if values else math.nan


def running_means(points: Sequence[tuple[float, float]], width: int) -> list[float]:
    """At each point the mean of so many values up to it; of fewer at the beginning."""
    total, means = 0.0, []
    for number, (_, value) in enumerate(points):
        total += value - (points[number - width][1] if number >= width else 0.0)
        means.append(total / min(width, number + 1))
    return means


def first_and_last(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The first value, and the mean of the last tenth: a single reading jumps."""
    tenth = max(1, len(points) // 10)
    return points[0][1], sum(value for _, value in points[-tenth:]) / tenth


def median(values: Sequence[float]) -> float:
    """The middle one; NaN without any."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[~middle]) / 2
