"""What can be said about a scene, and reading it back from generated text.

Captions are the text of stage 1 (``blip_caption`` leaves them unchanged), descriptions of stage 2.
"""

import random
import re
from dataclasses import dataclass

from minigpt4.tools.tiny_world.scenes import (
    BACKGROUNDS,
    COLORS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    Thing,
)

QUESTION_KINDS = ("shape", "color", "size", "count", "relation", "background", "yesno")
NUMBERS = ("zero", "one", "two", "three")

_COLOR, _SHAPE, _SIZE = ("|".join(words) for words in (COLORS, SHAPES, SIZES))
_THING = re.compile(rf"\ba (?:({_SIZE}) )?({_COLOR}) ({_SHAPE})\b")
_PLACE = re.compile(rf"\bat the ({'|'.join(sorted(PLACES, key=len, reverse=True))})\b")
_BACKGROUND = re.compile(rf"\bon a ({'|'.join(BACKGROUNDS)}) background\b")


@dataclass(frozen=True)
class Reading:
    """Colour-shape pairs that a text names, in order, and the layout."""

    pairs: tuple[tuple[str, str], ...]
    layout: str | None


@dataclass(frozen=True)
class Question:
    """A question about a scene, its kind (one of :data:`QUESTION_KINDS`) and its answer."""

    kind: str
    text: str
    answer: str


def name_thing(thing: Thing) -> str:
    return f"a {thing.size} {thing.color} {thing.shape}"


def caption(scene: Scene) -> str:
    """The stage-1 caption, e.g. ``a small red ring at the top left on a dark background``."""
    names = [name_thing(thing) for thing in scene.things]
    ground = f"on a {scene.background} background"
    if len(names) == 1:
        return f"{names[0]} at the {scene.layout} {ground}"
    if len(names) == 2:
        relation = "left of" if scene.layout == "beside" else "above"
        return f"{names[0]} {relation} {names[1]} {ground}"
    return f"a {scene.layout} of {names[0]}, {names[1]} and {names[2]} {ground}"


def description(scene: Scene) -> str:
    """The stage-2 description: two full sentences."""
    names = [name_thing(thing) for thing in scene.things]
    if len(names) == 1:
        body = f"There is {names[0]} at the {scene.layout}."
    elif len(names) == 2:
        first, second = ("left", "right") if scene.layout == "beside" else ("top", "bottom")
        body = f"There is {names[0]} at the {first} and {names[1]} at the {second}."
    else:
        way = "From left to right" if scene.layout == "row" else "From top to bottom"
        body = f"{way} there are {names[0]}, {names[1]} and {names[2]}."
    count = f"{NUMBERS[len(names)]} object{'s' if len(names) > 1 else ''}"
    return f"The image shows {count} on a {scene.background} background. {body}"


def read_back(text: str) -> Reading:
    """Return the pairs and the layout that a caption or a description names."""
    pairs = tuple((color, shape) for _, color, shape in _THING.findall(text))
    places = _PLACE.findall(text)
    layout = None
    if match := re.search(r"\ba (row|column) of\b", text):
        layout = match.group(1)
    elif "From left to right" in text:
        layout = "row"
    elif "From top to bottom" in text:
        layout = "column"
    elif " left of " in text or places == ["left", "right"]:
        layout = "beside"
    elif " above " in text or places == ["top", "bottom"]:
        layout = "above"
    elif len(places) == 1:
        layout = places[0]
    return Reading(pairs, layout)


def is_failed_description(text: str) -> bool:
    """Whether an answer to "describe this image" fails as in the paper.

    It is unfinished, names a thing twice, or is not two sentences, first ``The image shows …``.
    """
    sentences = [part.strip() for part in text.strip().split(".")]
    if sentences[-1] != "" or len(sentences) != 3:
        return True
    reading = read_back(text)
    if not sentences[0].startswith("The image shows") or not reading.pairs:
        return True
    return len(set(reading.pairs)) < len(reading.pairs)


def _opposites(scene: Scene) -> list[tuple[str, Thing, Thing]]:
    """Return neighbouring things as (relation of the first to the second, first, second)."""
    across = scene.layout in ("beside", "row")
    forth, back = ("left of", "right of") if across else ("above", "below")
    result = []
    for first, second in zip(scene.things, scene.things[1:], strict=False):
        result += [(forth, first, second), (back, second, first)]
    return result


def questions(scene: Scene, rng: random.Random) -> list[Question]:
    """One question of every kind that has exactly one right answer for this scene."""
    things = scene.things
    colors = [thing.color for thing in things]
    shapes = [thing.shape for thing in things]
    number = "is one object" if len(things) == 1 else f"are {NUMBERS[len(things)]} objects"
    ground = f"The background is {scene.background}."
    asked = [
        Question("count", "How many objects are there?", f"There {number}."),
        Question("background", "What is the background like?", ground),
    ]
    by_color = [thing for thing in things if colors.count(thing.color) == 1]
    by_shape = [thing for thing in things if shapes.count(thing.shape) == 1]
    if by_color:
        thing = rng.choice(by_color)
        text = f"What shape is the {thing.color} object?"
        asked.append(Question("shape", text, f"The {thing.color} object is a {thing.shape}."))
    if by_shape:
        thing = rng.choice(by_shape)
        text = f"What color is the {thing.shape}?"
        asked.append(Question("color", text, f"The {thing.shape} is {thing.color}."))
    thing = rng.choice(things)
    text = f"How big is the {thing.color} {thing.shape}?"
    asked.append(Question("size", text, f"The {thing.color} {thing.shape} is {thing.size}."))
    if len(things) > 1:
        relation, first, second = rng.choice(_opposites(scene))
        text = f"What is {relation} the {second.color} {second.shape}?"
        asked.append(Question("relation", text, f"There is a {first.color} {first.shape}."))
    asked.append(_yes_or_no(scene, rng))
    return asked


def _yes_or_no(scene: Scene, rng: random.Random) -> Question:
    """Return a question answered yes or no with equal odds."""
    color, shape = rng.choice(scene.things).pair
    truth = rng.random() < 0.5
    while not truth and (color, shape) in scene.pairs:
        color, shape = rng.choice(scene.things).pair
        if rng.random() < 0.5:
            color = rng.choice(tuple(COLORS))
        else:
            shape = rng.choice(SHAPES)
    verdict = "Yes, there is." if truth else "No, there is not."
    return Question("yesno", f"Is there a {color} {shape}?", verdict)
