"""Pictures: a folder → the pictures to describe, each under an id of its own → the set's folder."""

import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt4.apps.captions_input import encode, walk_pictures
from minigpt4.datasets.cc_sbu_align import ANNOTATION_FILE
from minigpt4.datasets.samples import IMAGE_SUFFIXES
from minigpt4.errors import ConfigError, MiniGPT4Error, one_line
from minigpt4.files import write_atomically

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
    """Return all pictures in a folder and below, by name, or a random sample of them."""
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
    if sample is not None and sample > len(names):
        raise ConfigError(f"--sample {sample}: there are only {len(names)} pictures in {folder}")
    places = range(len(names))
    chosen = places if sample is None else sorted(random.Random(seed).sample(places, sample))
    return [Picture(str(n), names[n], folder / names[n]) for n in chosen]


def digest_of(pictures: Sequence[Picture]) -> str:
    """Return a digest of the pictures' names and sizes."""
    digest = hashlib.sha256()
    for picture in pictures:
        try:
            size = picture.path.stat().st_size
        except OSError as error:
            raise ConfigError(f"--images: {one_line(error)}") from error
        digest.update(encode([picture.image_id, picture.name, size]))
    return digest.hexdigest()


def assemble(folder: Path, captions: Mapping[str, str], pictures: Mapping[str, Picture]) -> int:
    """Write the set of captions and pictures, both by picture id; return the number of pairs.

    Annotations come last, so that they name only files that exist. Other files in ``image/`` are
    removed.
    """
    images, file = folder / "image", folder / ANNOTATION_FILE
    try:
        images.mkdir(exist_ok=True)
        gone = [i for i in captions if not _place(pictures[i], images)]
        annotations = [{"image_id": i, "caption": t} for i, t in captions.items() if i not in gone]
        if annotations:
            content = json.dumps({"annotations": annotations}, ensure_ascii=False, indent=1) + "\n"
            write_atomically(file, lambda opened: opened.write(content.encode()))
        else:
            file.unlink(missing_ok=True)
        wanted = {pictures[entry["image_id"]].file_name for entry in annotations}
        for name in set(os.listdir(images)) - wanted:
            os.unlink(images / name)
    except OSError as error:
        raise MiniGPT4Error(
            f"{folder}: the set cannot be written ({one_line(error)}); its texts are safe: free "
            "space, and the same command goes on"
        ) from error
    if gone:
        first = pictures[gone[0]].path
        logger.warning("%d pictures have gone since they were described: %s …", len(gone), first)
    return len(annotations)


def _place(picture: Picture, images: Path) -> bool:
    """Put a picture into the set, as a hard link where possible; return whether it exists."""
    target, source = images / picture.file_name, picture.path.resolve()
    if target.exists():
        return True
    if not source.is_file():
        return False
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file of another user
        temporary = target.with_name(f".{target.name}.writing")
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    return True
