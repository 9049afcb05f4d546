"""A folder of curated pairs: ``filter_cap.json`` and ``image/``, the form of ``cc_sbu_align``."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from minigpt4.checks import is_placeholder
from minigpt4.datasets.samples import IMAGE_SUFFIXES, BadSample, RawSample, printable
from minigpt4.errors import DataError, one_line, shown

ANNOTATION_FILE = "filter_cap.json"

logger = logging.getLogger(__name__)


def check_alignment_folder(storage: str) -> str | None:
    """Complaint about a folder that does not hold the two parts."""
    if is_placeholder(storage):
        return f"{storage!r} is a placeholder; put the folder of your pairs there"
    folder = Path(storage)
    if not os.path.isdir(folder):  # also for names that no folder can have
        return f"no such folder: {storage}"
    if not (folder / ANNOTATION_FILE).is_file():
        return f"{storage} holds no {ANNOTATION_FILE}"
    if not (folder / "image").is_dir():
        return f"{storage} holds no image/"
    return None


class AlignmentSource:
    """Annotated pairs, each a unit; names and texts are held in memory, pictures are not."""

    window = 1  # the order of the units is shuffled already
    units_per_group = 512

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = read_entries(folder)
        self.units = len(self.entries)

    @property
    def readable(self) -> int:
        """Pairs that have a picture and a text."""
        return sum(isinstance(entry, RawSample) for entry in self.entries)

    def files(self, unit: int) -> list[Path]:
        image = getattr(self.entries[unit], "image", None)
        return [self.folder / ANNOTATION_FILE, *([image] if isinstance(image, Path) else [])]

    def read(self, unit: int) -> Iterator[RawSample | BadSample]:
        yield self.entries[unit]


def read_entries(folder: Path) -> list[RawSample | BadSample]:
    """Every annotated pair, in the order of the file.

    Those without an image or a text are a ``BadSample``; each kind is counted in one line.

    Raises:
        DataError: for annotations that cannot be read, or without a single image.
    """
    file = folder / ANNOTATION_FILE
    try:
        annotations = json.loads(file.read_text(encoding="utf-8"))["annotations"]
        entries = [(str(entry["image_id"]), entry["caption"]) for entry in annotations]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f'{file}: must hold {{"annotations": [{{"image_id": …, "caption": …}}, …]}} '
            f"({type(error).__name__}: {one_line(error)})"
        ) from error
    files = {
        image.stem: image
        for image in sorted((folder / "image").iterdir())
        if image.suffix.lower().lstrip(".") in IMAGE_SUFFIXES
    }
    samples: list[RawSample | BadSample] = []
    wordless, missing = [], []
    for image_id, text in entries:
        name = printable(image_id)
        if not isinstance(text, str):
            wordless.append(name)
            samples.append(BadSample(name, "no caption", f"{shown(text)} is not a text"))
        elif image_id not in files:
            missing.append(name)
            samples.append(BadSample(name, "no image", f"none in {folder / 'image'}"))
        else:
            samples.append(RawSample(name, files[image_id], text))
    if len(wordless) + len(missing) == len(samples):
        raise DataError(f"{file}: none of its {len(entries)} images is in {folder / 'image'}")
    if wordless:
        text = "%s: %d captions are no text and left out (first: %s)"
        logger.warning(text, folder, len(wordless), ", ".join(wordless[:3]))
    if missing:
        text = "%s: %d of %d images are missing and left out (first: %s)"
        logger.warning(text, folder, len(missing), len(entries), ", ".join(missing[:3]))
    return samples
