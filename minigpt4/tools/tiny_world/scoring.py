"""Scores of generated text about scenes, also as metrics.

``plugins: [minigpt4.tools.tiny_world.scoring]`` and ``run.metrics: [scene_pairs, …]``.
"""

from collections.abc import Sequence
from typing import Annotated

from minigpt4.metrics import LowerIsBetter
from minigpt4.registry import METRICS
from minigpt4.tools.tiny_world.phrases import Reading, is_failed_description, read_back
from minigpt4.tools.tiny_world.scenes import Scene


def names_exactly(reading: Reading, pairs: frozenset[tuple[str, str]]) -> bool:
    """Whether every colour-shape pair is named, once, and no other."""
    return len(reading.pairs) == len(pairs) and set(reading.pairs) == pairs


@METRICS.register("scene_pairs")
def score_pairs(output: str, reference: str) -> float:
    """1 where the output names exactly the things that the reference names."""
    return float(names_exactly(read_back(output), frozenset(read_back(reference).pairs)))


@METRICS.register("scene_layout")
def score_layout(output: str, reference: str) -> float:
    """1 where the output says the reference's layout."""
    return float(read_back(output).layout == read_back(reference).layout)


@METRICS.register("description_failure")
def score_failure(output: str, _: str) -> Annotated[float, LowerIsBetter]:
    """1 where the output is no description: unfinished, repeated or of the wrong form."""
    return float(is_failed_description(output))


def share(hits: Sequence[bool]) -> float:
    """Share of hits, to four places."""
    return round(sum(hits) / len(hits), 4) if hits else 0.0


def caption_figures(scenes: Sequence[Scene], captions: Sequence[str]) -> dict[str, float]:
    """Shares of captions that name exactly the right colour-shape pairs, and the right layout."""
    told = [(scene, read_back(text)) for scene, text in zip(scenes, captions, strict=True)]

    def exact_of(*counts: int) -> float:
        chosen = [(scene, reading) for scene, reading in told if len(scene.things) in counts]
        return share([names_exactly(reading, scene.pairs) for scene, reading in chosen])

    return {
        "exact": exact_of(1, 2, 3),
        "two_objects": exact_of(2),
        "three_objects": exact_of(3),
        "layout": share([reading.layout == scene.layout for scene, reading in told]),
    }


def description_figures(scenes: Sequence[Scene], answers: Sequence[str]) -> dict[str, float]:
    """Share of failed answers to "describe", and of exact ones (right pairs, not failed)."""
    failed = [is_failed_description(text) for text in answers]
    exact = [
        not bad and names_exactly(read_back(text), scene.pairs)
        for bad, text, scene in zip(failed, answers, scenes, strict=True)
    ]
    return {"failure": share(failed), "exact": share(exact)}
