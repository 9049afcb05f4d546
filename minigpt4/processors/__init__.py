"""Processors: one sample's image or text → what the model takes."""

from minigpt4.processors import image_processors, text_processors

__all__ = ["image_processors", "text_processors"]
