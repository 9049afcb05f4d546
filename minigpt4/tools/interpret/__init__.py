"""Looks: what a projection says in words, and where an answer's words look in the picture."""

from minigpt4.tools.interpret.attention import Attention, attention_to_image
from minigpt4.tools.interpret.folder import write_looks
from minigpt4.tools.interpret.overlay import open_picture, overlay, picture_seen, pixels_seen
from minigpt4.tools.interpret.words import (
    ChanceCosines,
    NearWord,
    chance_cosines,
    nearest_words,
    shown_word,
)

__all__ = [
    "Attention",
    "ChanceCosines",
    "NearWord",
    "attention_to_image",
    "chance_cosines",
    "nearest_words",
    "open_picture",
    "overlay",
    "picture_seen",
    "pixels_seen",
    "shown_word",
    "write_looks",
]
