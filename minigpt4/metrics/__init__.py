"""Metrics: score generated texts against what is known of the image.

A metric of your own comes from ``plugins:`` and is named in ``run.metrics``: a function
``(output, reference) -> float``, or a :class:`Metric` that sees all rows.
"""

from minigpt4.metrics import (  # noqa: F401 -- they register their metrics
    coverage,
    failures,
    hallucination,
    n_grams,
    question_answering,
)
from minigpt4.metrics.metric import Figure, LowerIsBetter, Metric, Row
from minigpt4.metrics.scoring import Parts, Scores, build_metrics, lower_is_better, score_rows

__all__ = [
    "Figure",
    "LowerIsBetter",
    "Metric",
    "Parts",
    "Row",
    "Scores",
    "build_metrics",
    "lower_is_better",
    "score_rows",
]
