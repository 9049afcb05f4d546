"""The tiny language model's corpus: notes about scenes, and what is said about them. Text only.

Documents talk about *notes*: short keyword lists about a scene.
"""

import random
from dataclasses import dataclass

from minigpt4.conversation import TEMPLATES
from minigpt4.tools.tiny_world.phrases import NUMBERS, Question, caption, description, questions
from minigpt4.tools.tiny_world.scenes import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, sample_scene

PROMPTS = (
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
)
_SYSTEM = TEMPLATES["vicuna_v0"].system
# This word among the notes asks for a description in full; without it a bare caption will do.
FULL = "full"
# Words that state a fact; in answers they weigh more than the words around them.
FACT_WORDS = (*COLORS, *SHAPES, *SIZES, *BACKGROUNDS, *NUMBERS[1:], "Yes", "No")
FACT_WORDS += ("left", "right", "top", "bottom", "center", "above", "row", "column")
# Shares of the questions drawn that are asked: what needs two look-ups needs most practice.
_ASKED = {"count": 0.4, "background": 0.5, "size": 0.4, "shape": 0.5}
_LONGEST = 6  # turns

Note = tuple[str, ...]  # words that share one position of a soft note, or stand side by side


@dataclass(frozen=True)
class Document:
    """Notes between two pieces of context, then the turns.

    Attributes:
        notes: What is known about the scene.
        before: Context before the notes.
        turns: Pairs of context and text to learn.
        full: Whether a description here is told in full.
        strength: How strongly soft notes ask for that, 0 to 1: the share of them that get it.
    """

    notes: list[Note]
    before: str
    turns: list[tuple[str, str]]
    full: bool = False
    strength: float = 0.0


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


def make_notes(scene: Scene, rng: random.Random) -> list[Note]:
    """Notes about a scene: every thing and the background, in random order."""
    notes: list[Note] = []
    for attributes, place in _thing_notes(scene):
        if rng.random() < 0.8:
            notes.append((*place, *attributes))
        else:
            notes += [(*place, word) for word in attributes]
    notes.append((scene.background,))
    # Not always told: the places tell it too, and how many things there are must not hang on it.
    if len(scene.things) > 1 and rng.random() < 0.5:
        notes.append(("row" if scene.layout in ("beside", "row") else "column",))
    rng.shuffle(notes)
    return notes


def make_document(rng: random.Random) -> Document:
    """One random document: a bare caption, or a conversation about the notes."""
    scene = sample_scene(rng, count=rng.choice((1, 2, 2, 3, 3, 3)))
    notes = make_notes(scene, rng)
    strength = rng.choice((0.0, rng.random()))
    full = rng.random() < strength
    if rng.random() < 0.25:
        return Document(notes, "", [("", caption(scene) + "\n")], full, strength)
    before = (_SYSTEM if rng.random() < 0.25 else "") + "###Human: <Img>"
    close = rng.choice((" ###Assistant: ", "###Assistant: "))
    turns: list[tuple[str, str]] = []
    if rng.random() < 0.25:
        turns.append((rng.choice(PROMPTS), description(scene) if full else caption(scene)))
    turns += [(question.text, question.answer) for question in _ask(scene, rng)]
    texts = []
    for index, (question, answer) in enumerate(turns[:_LONGEST]):
        opening = "</Img> " if index == 0 else "Human: "
        texts.append((opening + question + close, answer + "###"))
    return Document(notes, before, texts, full, strength)


def _ask(scene: Scene, rng: random.Random) -> list[Question]:
    """Different questions in random order."""
    drawn: dict[str, Question] = {}
    for _ in range(3):
        for question in (*questions(scene, rng), _is_there(scene, rng)):
            if rng.random() < _ASKED.get(question.kind, 1.0):
                drawn[question.text] = question
    asked = list(drawn.values())
    rng.shuffle(asked)
    return asked


def _is_there(scene: Scene, rng: random.Random) -> Question:
    """Whether one colour or shape is there at all: what a yes or no about a pair builds on."""
    thing = rng.choice(scene.things)
    if rng.random() < 0.5:
        color = thing.color if rng.random() < 0.5 else rng.choice(tuple(COLORS))
        text, truth = f"Is anything {color}?", any(t.color == color for t in scene.things)
    else:
        shape = thing.shape if rng.random() < 0.5 else rng.choice(SHAPES)
        text, truth = f"Is there a {shape}?", any(t.shape == shape for t in scene.things)
    return Question("presence", text, "Yes, there is." if truth else "No, there is not.")
