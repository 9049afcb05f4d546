"""Thinned and smoothed curves keep what one looks for in them."""

import math

from minigpt4.tools.report.charts import smooth, thin


def test_thinning_keeps_the_ends_and_every_spike():
    points = [(float(n), math.sin(n / 500)) for n in range(100_000)]
    points[54_321] = (54_321.0, 99.0)
    points[12_345] = (12_345.0, -99.0)
    kept = thin(points)
    assert len(kept) <= 600
    assert {points[0], points[-1], points[54_321], points[12_345]} <= set(kept)
    assert kept == sorted(kept)
    assert thin(points[:600]) == points[:600]


def test_smoothing_begins_at_the_first_value_and_follows():
    noisy = [(float(n), 1.0 + (-1) ** n) for n in range(1000)]
    smoothed = smooth(noisy)
    assert smoothed[0] == noisy[0]
    assert all(abs(value - 1) < 0.1 for _, value in smoothed[200:])
    assert smooth([(1.0, 5.0)]) == [(1.0, 5.0)]
    assert smooth([]) == []
