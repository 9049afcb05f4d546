"""Pictures: a folder → the pictures to describe, each under an id of its own."""

import hashlib
import logging
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt4.apps.captions_input import SUFFIXES, encode
from minigpt4.datasets.samples import IMAGE_SUFFIXES
from minigpt4.errors import ConfigError, one_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A picture to describe.

    Attributes:
        image_id: Its place among all pictures of the folder; safe as a file's name.
        name: Relative to the folder.
        path: Where it lies.
    """

    image_id: str
    name: str
    path: Path

    @property
    def file_name(self) -> str:
        """In the set that is made."""
        return self.image_id + self.path.suffix.lower()


def find_pictures(folder: Path, sample: int | None = None, seed: int = 0) -> list[Picture]:
    """Pictures in a folder and below, by name; hidden ones are left out.

    Args:
        folder: Where to look.
        sample: So many, drawn at random; all without.
        seed: Of the drawing.

    Raises:
        ConfigError: for a folder without one, or with fewer than are to be drawn.
    """
    names, others = _walk(folder)
    if others:
        text = "%s: %d pictures of other kinds are left out; stage 2 reads %s (first: %s)"
        logger.warning(text, folder, len(others), ", ".join(IMAGE_SUFFIXES), others[0])
    if not names:
        kinds = ", *.".join(IMAGE_SUFFIXES)
        raise ConfigError(f"--images {folder}: no picture in it or below (*.{kinds})")
    if sample is not None and sample > len(names):
        raise ConfigError(f"--sample {sample}: there are only {len(names)} pictures in {folder}")
    chosen = range(len(names))
    if sample is not None:
        chosen_at_random = random.Random(seed).sample(chosen, sample)
        return [Picture(str(i), names[i], folder / names[i]) for i in sorted(chosen_at_random)]
    return [Picture(str(i), names[i], folder / names[i]) for i in chosen]


def digest_of(pictures: Sequence[Picture]) -> str:
    """What changes where a picture comes, goes, or becomes another.

    Raises:
        ConfigError: for one that has gone already.
    """
    digest = hashlib.sha256()
    for picture in pictures:
        try:
            size = picture.path.stat().st_size
        except OSError as error:
            raise ConfigError(f"--images: {one_line(error)}") from error
        digest.update(encode([picture.image_id, picture.name, size]))
    return digest.hexdigest()


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """Names of pictures that stage 2 reads, and of others."""
    if not folder.is_dir():
        raise ConfigError(f"--images {folder}: no such folder")

    def refuse(error: OSError) -> None:
        raise ConfigError(f"--images {folder}: cannot be read ({one_line(error)})") from error

    names: list[str] = []
    others: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            suffix = name.lower().rpartition(".")[2]
            if name.startswith(".") or suffix not in SUFFIXES:
                continue
            found = os.path.relpath(os.path.join(parent, name), folder)
            (names if suffix in IMAGE_SUFFIXES else others).append(found)
    return names, others
