"""Splits: which rows a training reads, and which are held out for an evaluation."""

import hashlib
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Side:
    """One side of a split, or all: which rows are on it is a function of their first images.

    Attributes:
        part: Which one.
        val_fraction: Share of the images on the side ``val``.
    """

    part: Literal["all", "train", "val"] = "all"
    val_fraction: float = 0.0

    def has(self, place: float) -> bool:
        """Whether a row is on it, by what :func:`place_of` its image gives."""
        return self.part == "all" or (place < self.val_fraction) == (self.part == "val")


ALL = Side()


def place_of(identity: str) -> float:
    """A number from 0 to 1 that is always the same for an image's name, or a row's."""
    digest = hashlib.blake2b(identity.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
