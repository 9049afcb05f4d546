"""Looks: what a projection says in words, and where an answer's words look in the image."""

from minigpt4.tools.interpret.attention import attention_to_image
from minigpt4.tools.interpret.folder import write_looks
from minigpt4.tools.interpret.overlay import overlay, picture_seen, pixels_seen
from minigpt4.tools.interpret.words import chance_cosines, nearest_words, shown_word

__all__ = [
    "attention_to_image",
    "chance_cosines",
    "nearest_words",
    "overlay",
    "picture_seen",
    "pixels_seen",
    "shown_word",
    "write_looks",
]
