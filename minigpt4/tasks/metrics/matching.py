"""Metrics: what the model said, held against the reference; averaged over an evaluation's samples.

A metric is a function ``(output, reference) -> float``. One's own come from ``plugins:`` and are
named in ``run.metrics``.
"""

import math
from collections.abc import Sequence

from minigpt4.errors import MiniGPT4Error, one_line
from minigpt4.registry import METRICS


@METRICS.register("exact_match")
def exact_match(output: str, reference: str) -> float:
    """1.0 when both are equal up to white space, else 0.0."""
    return float(output.split() == reference.split())


def score(names: Sequence[str], output: str, reference: str) -> dict[str, float]:
    """Every named metric of one output.

    Raises:
        MiniGPT4Error: when a metric fails, or gives anything but a number.
    """
    scores = {}
    for name in names:
        try:
            scores[name] = float(METRICS.get(name)(output, reference))
        except Exception as error:  # whatever the user's own metric does
            raise MiniGPT4Error(
                f"run.metrics: {name} fails on the output {output!r:.60} with the reference "
                f"{reference!r:.60} ({type(error).__name__}: {one_line(error)})"
            ) from error
        if not math.isfinite(scores[name]):
            raise MiniGPT4Error(
                f"run.metrics: {name} gives {scores[name]} for the output {output!r:.60} with the "
                f"reference {reference!r:.60}; a metric gives a finite number"
            )
    return scores
