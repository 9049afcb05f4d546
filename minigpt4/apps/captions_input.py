"""Caption input: folders, globs, single images and JSON lines → rows, in order."""

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.datasets.samples import IMAGE_SUFFIXES
from minigpt4.errors import ConfigError, DataError, one_line

# Images in a folder; an image that is named may be called anything.
SUFFIXES = (*IMAGE_SUFFIXES, "gif", "bmp", "tif", "tiff", "avif", "jp2")
_OURS = ("caption", "error")  # keys that the output has of its own


@dataclass(frozen=True)
class Row:
    """An image to caption."""

    given: dict[str, Any]  # repeated in the output: ``image``, and other keys of its line in a list
    path: Path
    prompt: str

    def told(self, caption: str | DataError) -> dict[str, Any]:
        key = "error" if isinstance(caption, DataError) else "caption"
        return {**self.given, "prompt": self.prompt, key: str(caption)}


class CaptionInput:
    """Rows of several inputs, one after the other; lists are read line by line on every pass.

    Inputs are folders (with folders in them, without hidden ones), globs, ``.jsonl`` lists, and
    single images. ``prompt`` is for images whose line in a list has none.
    """

    def __init__(self, names: Sequence[str], prompt: str) -> None:
        self.prompt = prompt
        self._parts: list[Path | list[str]] = [part for name in names for part in _expand(name)]

    @property
    def lists(self) -> list[Path]:
        """The JSON lines files among the inputs."""
        return [part for part in self._parts if isinstance(part, Path)]

    def __iter__(self) -> Iterator[Row]:
        for part in self._parts:
            if isinstance(part, Path):
                yield from self._read_list(part)
            else:
                yield from (Row({"image": name}, Path(name), self.prompt) for name in part)

    def measure(self) -> tuple[int, str]:
        """Return the number of rows and a digest of their content."""
        count, digest = 0, hashlib.sha256()
        for count, row in enumerate(self, 1):  # noqa: B007
            digest.update(encode([row.given, str(row.path), row.prompt]))
        return count, digest.hexdigest()

    def _read_list(self, file: Path) -> Iterator[Row]:
        try:
            with open(file, "rb") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield self._read_line(line, file, f"{file}, line {number}")
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({one_line(error)})") from error

    def _read_line(self, line: bytes, file: Path, place: str) -> Row:
        try:
            given = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON ({one_line(error)})") from error
        if not isinstance(given, dict):
            raise DataError(f'{place}: not an object such as {{"image": "a.png"}}')
        image = given.get("image")
        prompt = given.pop("prompt", self.prompt)
        if not (isinstance(image, str) and image):
            raise DataError(f'{place}: "image" must name the picture\'s file')
        if not (isinstance(prompt, str) and prompt.strip()):
            raise DataError(f'{place}: "prompt" must be what to ask; leave it out for --prompt')
        if taken := [key for key in _OURS if key in given]:
            raise DataError(f'{place}: "{taken[0]}" is a key of the output; give it another name')
        return Row(given, file.parent / image, prompt)


def encode(value: object) -> bytes:
    """Return a line of JSON; half a character, as in names on disk, is escaped."""
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _expand(name: str) -> Iterator[Path | list[str]]:
    """Yield the lists and the images of one ``--input``."""
    if os.path.isdir(name):
        pictures = list(walk_pictures(name, "--input"))
        if not pictures:
            raise ConfigError(f"--input {name}: no picture in it (*.{', *.'.join(SUFFIXES)})")
        yield pictures
        return
    files = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
    files = [file for file in files if not os.path.isdir(file)]
    if not files:
        raise ConfigError(f"--input {name}: no such file or folder, and nothing matches it")
    for file in files:
        yield Path(file) if file.lower().endswith(".jsonl") else [file]


def walk_pictures(folder: str, option: str) -> Iterator[str]:
    """Yield images in a folder by name, then those of the folders in it."""

    def refuse(error: OSError) -> None:
        raise ConfigError(f"{option} {folder}: cannot be read ({one_line(error)})") from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().rpartition(".")[2] in SUFFIXES:
                yield os.path.join(parent, name)
