"""Matching: whether an output is what the reference is."""

from minigpt4.registry import METRICS


@METRICS.register("exact_match")
def exact_match(output: str, reference: str) -> float:
    """1.0 when both are equal up to white space, else 0.0."""
    return float(output.split() == reference.split())
