"""Object words: a table of objects and the words for them → the objects that a text mentions."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

import yaml

from minigpt4.errors import ConfigError, DataError, one_line, shown
from minigpt4.metrics.words import words_of

NOTHING = "nothing"  # of phrases that hold an object's word and are another thing


class ObjectWords:
    """Objects by the words for them.

    Args:
        table: Of each object's other words; ``nothing`` has phrases that name none.
    """

    def __init__(self, table: Mapping[str, Iterable[str]]) -> None:
        self._objects: dict[tuple[str, ...], str] = {}
        for name, others in table.items():
            for phrase in (name, *others) if name != NOTHING else others:
                words = tuple(words_of(phrase))
                for form in (words, (*words[:-1], _plural(words[-1]))):
                    # A word that the table writes out is no other word's plural.
                    if form == words or form not in self._objects:
                        self._objects[form] = name
        self._longest = max(map(len, self._objects), default=0)

    def find(self, text: str) -> list[str]:
        """The objects that a text mentions, in its order, each as often as it does."""
        words = [word.removesuffix("'s") for word in words_of(text)]
        found, place = [], 0
        while place < len(words):
            for length in range(self._longest, 0, -1):
                name = self._objects.get(tuple(words[place : place + length]))
                if name is not None and place + length <= len(words):
                    if name != NOTHING:
                        found.append(name)
                    place += length
                    break
            else:
                place += 1
        return found


@cache
def load_object_words(path: Path | None = None) -> ObjectWords:
    """Words of a YAML file ``object: [other word, …]``; of COCO's 80 objects without one.

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
    """Objects of each image in an annotation file of COCO's form, by the image's name without
    suffix.

    Raises:
        DataError: for a file of another form.
    """
    try:
        told = json.loads(path.read_bytes())
        names = {entry["id"]: str(entry["name"]) for entry in told["categories"]}
        files_of = {entry["id"]: Path(entry["file_name"]).stem for entry in told["images"]}
        objects: dict[str, list[str]] = {name: [] for name in files_of.values()}
        for entry in told["annotations"]:
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
