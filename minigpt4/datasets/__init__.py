"""Data sets: files on disk → endless, seeded streams of images and strings."""

from minigpt4.datasets import caption_shards, cc_sbu_align, options
from minigpt4.datasets.own_rows import pairs

__all__ = ["caption_shards", "cc_sbu_align", "options", "pairs"]
