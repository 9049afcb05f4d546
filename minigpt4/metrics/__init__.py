"""Metrics: what the model said, held against what is known of the image.

A metric of one's own comes from ``plugins:`` and is named in ``run.metrics``: a function
``(output, reference) -> float``, or a :class:`Metric` where it looks at more than that.
"""

from minigpt4.metrics import failures, matching, n_grams, question_answering
from minigpt4.metrics.figures import Figure, LowerIsBetter, Metric, Row
from minigpt4.metrics.hallucination import Objects
from minigpt4.metrics.scoring import (
    Parts,
    Scores,
    build_metrics,
    lower_is_better,
    score_rows,
)

__all__ = [
    "Figure",
    "LowerIsBetter",
    "Metric",
    "Objects",
    "Parts",
    "Row",
    "Scores",
    "build_metrics",
    "failures",
    "lower_is_better",
    "matching",
    "n_grams",
    "question_answering",
    "score_rows",
]
