"""Pictures: a folder → the pictures to describe, each under an id of its own."""

import hashlib
import logging
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt4.apps.captions_input import encode, walk_pictures
from minigpt4.datasets.samples import IMAGE_SUFFIXES
from minigpt4.errors import ConfigError, one_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A picture to describe: its place among all of the folder, its name there, and its path."""

    image_id: str
    name: str
    path: Path

    @property
    def file_name(self) -> str:
        """Name in the set that is made."""
        return self.image_id + self.path.suffix.lower()


def find_pictures(folder: Path, sample: int | None = None, seed: int = 0) -> list[Picture]:
    """Return the pictures in a folder and below, by name; hidden ones are left out.

    Args:
        folder: Folder to look in.
        sample: Number of pictures, drawn at random; all without.
        seed: Random seed of the drawing.

    Raises:
        ConfigError: for a folder without one, or with fewer than are to be drawn.
    """
    if not folder.is_dir():
        raise ConfigError(f"--images {folder}: no such folder")
    found = [os.path.relpath(path, folder) for path in walk_pictures(str(folder), "--images")]
    names = [name for name in found if name.lower().endswith(IMAGE_SUFFIXES)]
    others = [name for name in found if not name.lower().endswith(IMAGE_SUFFIXES)]
    if others:
        text = "%s: %d pictures of other kinds are left out; stage 2 reads %s (first: %s)"
        logger.warning(text, folder, len(others), ", ".join(IMAGE_SUFFIXES), others[0])
    if not names:
        kinds = ", *.".join(IMAGE_SUFFIXES)
        raise ConfigError(f"--images {folder}: no picture in it or below (*.{kinds})")
    places = range(len(names))
    if sample is None:
        chosen = [*places]
    elif sample <= len(names):
        chosen = sorted(random.Random(seed).sample(places, sample))
    else:
        raise ConfigError(f"--sample {sample}: there are only {len(names)} pictures in {folder}")
    return [Picture(str(n), names[n], folder / names[n]) for n in chosen]


def digest_of(pictures: Sequence[Picture]) -> str:
    """Return what changes where a picture comes, goes, or becomes another.

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
