"""The tiny language model's corpus: notes about scenes, and what is said about them. Text only.

Documents talk about *notes*: short keyword lists about a scene.
"""

import random
from dataclasses import dataclass

from minigpt4.cli.tiny_world.phrases import caption, description, questions
from minigpt4.cli.tiny_world.scenes import Scene, sample_scene
from minigpt4.conversation import TEMPLATES

PROMPTS = (
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
)
_SYSTEM = TEMPLATES["vicuna_v0"].system
# One of these words among the notes says how a description is to be told; without one, it varies.
FULL, BRIEF = "full", "brief"

Note = tuple[str, ...]  # words that share one position of a soft note, or stand side by side


@dataclass(frozen=True)
class Document:
    """Notes between two pieces of context, then the turns: (context, text to learn)."""

    notes: list[Note]
    before: str
    turns: list[tuple[str, str]]


def _thing_notes(scene: Scene) -> list[tuple[Note, Note]]:
    """For each thing its attribute words and its place words."""
    spots: dict[str, list[str]] = {
        "beside": ["left", "right"],
        "above": ["top", "bottom"],
        "row": ["left", "center", "right"],
        "column": ["top", "center", "bottom"],
    }
    places = spots.get(scene.layout, [scene.layout])
    return [
        ((thing.size, thing.color, thing.shape), tuple(place.split()))
        for thing, place in zip(scene.things, places, strict=True)
    ]


def make_notes(scene: Scene, style: str | None, rng: random.Random) -> list[Note]:
    """Notes about a scene: every fact at least once, tied to a place, in random order."""
    notes: list[Note] = []
    for attributes, place in _thing_notes(scene):
        if rng.random() < 0.5:
            notes.append((*attributes, *place))
        else:
            notes += [(word, *place) for word in attributes]
    notes.append((scene.background,))
    if len(scene.things) > 1:
        notes.append(("row" if scene.layout in ("beside", "row") else "column",))
    if style:
        notes.append((style,))
    rng.shuffle(notes)
    return notes


def _describe(scene: Scene, style: str | None, rng: random.Random) -> str:
    """A description as told: full sentences, or just the bare caption."""
    full = style == FULL if style else rng.random() < 0.3
    return description(scene) if full else caption(scene)


def make_document(rng: random.Random) -> Document:
    """One random document: a bare caption, or a conversation about the notes."""
    scene = sample_scene(rng)
    style = rng.choice((FULL, BRIEF, None))
    notes = make_notes(scene, style, rng)
    if rng.random() < 0.35:
        return Document(notes, "", [("", caption(scene) + "\n")])
    before = (_SYSTEM if rng.random() < 0.4 else "") + "###Human: <Img>"
    close = rng.choice((" ###Assistant: ", "###Assistant: "))
    asked = questions(scene, rng)
    rng.shuffle(asked)
    turns: list[tuple[str, str]] = []
    if rng.random() < 0.5:
        turns.append((rng.choice(PROMPTS), _describe(scene, style, rng)))
    count = rng.randint(0 if turns else 1, 3)
    turns += [(question.text, question.answer) for question in asked[:count]]
    texts = []
    for index, (question, answer) in enumerate(turns):
        opening = "</Img> " if index == 0 else "Human: "
        texts.append((opening + question + close, answer + "###"))
    return Document(notes, before, texts)
