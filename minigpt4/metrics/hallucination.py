"""Hallucination: CHAIR, the objects that are told and are not there.

An image's objects are those that its row names, or an annotation file does; what its references
mention is there, too.

Source: Rohrbach et al., Object Hallucination in Image Captioning, 2018.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Annotated, ClassVar

import numpy as np

from minigpt4.metrics.figures import Figure, Metric, Row
from minigpt4.metrics.object_words import ObjectWords, load_object_words
from minigpt4.registry import METRICS, Hidden


@dataclass(frozen=True)
class Objects:
    """What is known of objects.

    Attributes:
        words: By which they are told; those of COCO's 80 categories without.
        of_images: Their names by an image's file name without suffix.
    """

    words: ObjectWords | None = None
    of_images: Mapping[str, Sequence[str]] = field(default_factory=dict)


class _Chair(Metric):
    lower_is_better = True
    needs = "objects: a list of names in the row, or its image in the file of --objects"
    by_mention: ClassVar[bool]

    def __init__(self, objects: Annotated[Objects | None, Hidden] = None) -> None:
        known = objects or Objects()
        self._words = known.words or load_object_words()
        self._of_images = known.of_images

    def measure(self, rows: Sequence[Row]) -> Figure:
        scores: list[float | None] = []
        sums = np.zeros((len(rows), 2))
        notes: list[dict[str, list[str]]] = []
        for number, row in enumerate(rows):
            there = self._there(row)
            if there is None:
                scores.append(None)
                notes.append({})
                continue
            told = self._words.find(row["output"])
            wrong = [name for name in told if name not in there]
            # Every mention counts, or every output once.
            part, whole = (len(wrong), len(told)) if self.by_mention else (int(bool(wrong)), 1)
            sums[number] = part, whole
            scores.append(part / whole if whole else 0.0)
            notes.append({"hallucinated": sorted({*wrong})} if wrong else {})
        return Figure(scores, sums, lambda s: float(s[0] / s[1]) if s[1] else 0.0, notes)

    def _there(self, row: Row) -> set[str] | None:
        """The objects in an image; None where nobody says."""
        image = PurePath(str(row.get("image", "")))
        names = row.get("objects", self._of_images.get(image.stem))
        if names is None:
            return None
        mentioned = [name for text in row["references"] for name in self._words.find(text)]
        return {*mentioned, *(found for name in names for found in self._words.find(name))}


@METRICS.register("chair_i")
class ChairI(_Chair):
    """Share of mentioned objects that are not in the image; every mention counts."""

    by_mention = True


@METRICS.register("chair_s")
class ChairS(_Chair):
    """Share of outputs that mention an object that is not in the image."""

    by_mention = False
