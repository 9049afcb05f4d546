"""Data sets: files on disk → endless, seeded streams of images and strings."""

from minigpt4.datasets import caption_shards, cc_sbu_align
from minigpt4.datasets.own_rows import builder

__all__ = ["builder", "caption_shards", "cc_sbu_align"]
