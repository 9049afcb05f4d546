"""Hallucination: CHAIR, the objects that a text mentions and that are not in the image.

An image's objects are those that its row or an annotation file names, and those that its
references mention.

Source: Rohrbach et al., Object Hallucination in Image Captioning, 2018.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Annotated, ClassVar

import numpy as np
import yaml

from minigpt4.errors import ConfigError, DataError, one_line, shown
from minigpt4.metrics.metric import Figure, Metric, Row, words_of
from minigpt4.registry import METRICS, Hidden

NOTHING = "nothing"  # of phrases that hold an object's word and are another thing


class ObjectWords:
    """Finds objects in texts by the words for them.

    Args:
        table: Other words for each object; ``nothing`` has phrases that are no object.
    """

    def __init__(self, table: Mapping[str, Iterable[str]]) -> None:
        self._objects: dict[str, str] = {}
        for name, others in table.items():
            for phrase in (name, *others) if name != NOTHING else others:
                words = " ".join(words_of(phrase))
                for form in (words, _plural(words)):
                    # A word that the table writes out is no other word's plural.
                    if form == words or form not in self._objects:
                        self._objects[form] = name
        longest_first = sorted(map(re.escape, self._objects), key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\S)(?:{'|'.join(longest_first) or '(?!)'})(?!\S)")

    def find(self, text: str) -> list[str]:
        """Return the objects that a text mentions, in its order, each as often as it does."""
        words = " ".join(word.removesuffix("'s") for word in words_of(text))
        names = (self._objects[phrase] for phrase in self._pattern.findall(words))
        return [name for name in names if name != NOTHING]


@cache
def load_object_words(path: Path | None = None) -> ObjectWords:
    """Load a YAML file ``object: [other word, …]``; without one, COCO's 80 objects.

    Raises:
        ConfigError: for a file of another form.
    """
    source = path or files("minigpt4.metrics").joinpath("coco_objects.yaml")
    try:
        table = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--object-words {path}: cannot be read ({one_line(error)})") from error
    if not isinstance(table, dict) or not table:
        raise ConfigError(f"--object-words {path}: must hold lines such as dog: [puppy, hound]")
    for name, others in table.items():
        listed = others if isinstance(others, list) else [None]
        if not all(isinstance(text, str) and words_of(text) for text in (name, *listed)):
            text = f"{shown(name)}: {shown(others)} is not a list of words"
            raise ConfigError(f"--object-words {path}: {text}; quote words such as 'no' and 'on'")
    return ObjectWords(table)


def load_annotated_objects(path: Path) -> dict[str, list[str]]:
    """Load each image's objects from annotations of COCO's form, by file name without suffix.

    Raises:
        DataError: for a file of another form.
    """
    try:
        content = json.loads(path.read_bytes())
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        files_of = {entry["id"]: Path(entry["file_name"]).stem for entry in content["images"]}
        objects: dict[str, list[str]] = {name: [] for name in files_of.values()}
        for entry in content["annotations"]:
            objects[files_of[entry["image_id"]]].append(names[entry["category_id"]])
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"--objects {path}: cannot be read ({one_line(error)})") from error
    except (KeyError, TypeError) as error:
        text = "must hold images, categories and annotations, as COCO's instances_val2014.json"
        raise DataError(f"--objects {path}: {text} ({type(error).__name__}: {error})") from error
    return {image: sorted({*own}) for image, own in objects.items()}


def _plural(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + "s"


class _Chair(Metric):
    lower_is_better = True
    needs = "objects: a list of names in the row, or its image in the file of --objects"
    by_mention: ClassVar[bool]

    def __init__(
        self,
        object_words: Annotated[ObjectWords | None, Hidden] = None,
        image_objects: Annotated[Mapping[str, Sequence[str]] | None, Hidden] = None,
    ) -> None:
        self._words = object_words or load_object_words()
        self._of_images = image_objects or {}

    def measure(self, rows: Sequence[Row]) -> Figure:
        scores: list[float | None] = [None] * len(rows)
        sums = np.zeros((len(rows), 2))
        notes: list[dict[str, list[str]]] = [{} for _ in rows]
        for number, row in enumerate(rows):
            there = self._there(row)
            if there is None:
                continue
            mentioned = self._words.find(row["output"])
            wrong = [name for name in mentioned if name not in there]
            # Every mention counts, or every output once.
            part, whole = (len(wrong), len(mentioned)) if self.by_mention else (bool(wrong), 1)
            sums[number] = part, whole
            scores[number] = part / whole if whole else 0.0
            if wrong:
                notes[number] = {"hallucinated": sorted({*wrong})}
        return Figure(scores, sums, lambda s: float(s[0] / s[1]) if s[1] else 0.0, notes)

    def _there(self, row: Row) -> set[str] | None:
        """The objects in an image; None where nothing names them."""
        image = PurePath(str(row.get("image", "")))
        names = row.get("objects", self._of_images.get(image.stem))
        if names is None:
            return None
        return {name for text in (*row["references"], *names) for name in self._words.find(text)}


@METRICS.register("chair_i")
class ChairI(_Chair):
    """Share of mentioned objects that are not in the image; every mention counts."""

    by_mention = True


@METRICS.register("chair_s")
class ChairS(_Chair):
    """Share of outputs that mention an object that is not in the image."""

    by_mention = False
