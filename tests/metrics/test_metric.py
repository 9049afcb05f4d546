"""Intervals: where the figures of other draws of the same samples lie."""

import numpy as np
import pytest

from minigpt4.metrics import Figure, score_rows


def test_the_interval_of_a_mean_is_that_of_the_binomial() -> None:
    figure = Figure([1.0] * 30 + [0.0] * 70)
    low, high = figure.interval(seed=0)
    # 0.3 ± 1.96 √(0.3 · 0.7 / 100)
    assert low == pytest.approx(0.21, abs=0.015)
    assert high == pytest.approx(0.39, abs=0.015)
    assert figure.interval(seed=0) == (low, high)
    assert figure.interval(seed=1) != (low, high)


def test_one_sample_has_no_width_and_what_is_unscored_no_part() -> None:
    assert Figure([0.25]).interval(0) == (0.25, 0.25)
    assert Figure([1.0, None, 1.0, None]).interval(0) == (1.0, 1.0)
    assert Figure([1.0, None, 0.0]).whole() == 0.5


def test_a_ratio_of_sums_is_drawn_as_one() -> None:
    sums = np.array([[1.0, 1.0], [0.0, 99.0]])
    figure = Figure([1.0, 0.0], sums, lambda s: float(s[0] / s[1]))
    assert figure.whole() == 0.01
    # Twice the first, once each, or twice the second.
    assert figure.interval(0) == (0.0, 1.0)


def test_a_corpus_bleu_in_an_interval_is_that_of_the_draws() -> None:
    texts = ["a red circle above a blue square", "a green star on the left of a cross"]
    rows = [
        {"output": texts[0], "references": [texts[0]]},
        {"output": "a green star near a red square", "references": [texts[1]]},
    ]
    twice = score_rows(["bleu"], [rows[1]] * 2).means["bleu"]
    low, high = score_rows(["bleu"], rows).intervals()["bleu"]
    assert low == pytest.approx(twice)
    assert high == pytest.approx(100)
