"""Data sets: files on disk → endless, seeded streams of images and strings."""

from minigpt4.datasets import builders

__all__ = ["builders"]
