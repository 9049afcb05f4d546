"""Scores of texts about scenes."""

import random

import pytest

from minigpt4.tools.tiny_world.phrases import caption, description
from minigpt4.tools.tiny_world.scenes import sample_scene
from minigpt4.tools.tiny_world.scoring import (
    caption_figures,
    description_figures,
    score_failure,
    score_layout,
    score_pairs,
)

REFERENCE = "a small red ring left of a large blue star on a dark background"
RIGHT = "The image shows two objects on a dark background. There is a small red ring at the left "
RIGHT += "and a large blue star at the right."


def test_a_description_is_scored_against_a_caption():
    assert score_pairs(RIGHT, REFERENCE) == 1.0
    assert score_layout(RIGHT, REFERENCE) == 1.0
    assert score_failure(RIGHT, REFERENCE) == 0.0
    assert score_failure(REFERENCE, RIGHT) == 1.0, "a bare caption is no description"


@pytest.mark.parametrize(
    "output",
    [
        "",
        "a small red ring on a dark background",
        "a small red star left of a large blue ring on a dark background",
        "a small red ring left of a large blue star and a large red star on a dark background",
        "a small red ring left of a small red ring and a large blue star on a dark background",
    ],
)
def test_wrong_things_score_nothing(output: str):
    assert score_pairs(output, REFERENCE) == 0.0


def test_only_the_layout_is_wrong():
    above = REFERENCE.replace("left of", "above")
    assert score_pairs(above, REFERENCE) == 1.0
    assert score_layout(above, REFERENCE) == 0.0


def test_figures_of_right_and_wrong_texts():
    rng = random.Random(0)
    scenes = [sample_scene(rng, count=1 + i % 3) for i in range(30)]
    captions, descriptions = [caption(s) for s in scenes], [description(s) for s in scenes]
    right = {"exact": 1.0, "two_objects": 1.0, "three_objects": 1.0, "layout": 1.0}
    assert caption_figures(scenes, captions) == right
    assert description_figures(scenes, descriptions) == {"failure": 0.0, "exact": 1.0}
    swapped = caption_figures(scenes, captions[1:] + captions[:1])
    assert swapped["exact"] == 0.0
    assert description_figures(scenes, captions) == {"failure": 1.0, "exact": 0.0}
    captions[1] = "a"  # of two things
    figures = caption_figures(scenes, captions)
    assert figures["two_objects"] == 0.9
    assert figures["three_objects"] == 1.0
    assert figures["exact"] == 0.9667
