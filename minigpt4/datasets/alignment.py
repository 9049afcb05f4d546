"""A folder of curated pairs: ``filter_cap.json`` and ``image/``, the form of ``cc_sbu_align``."""

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path

from minigpt4.checks import is_placeholder
from minigpt4.datasets.samples import IMAGE_SUFFIXES, BadSample, RawSample
from minigpt4.errors import DataError

ANNOTATION_FILE = "filter_cap.json"

logger = logging.getLogger(__name__)


def check_alignment_folder(storage: str) -> str | None:
    """Complaint about a folder that does not hold the two parts."""
    if is_placeholder(storage):
        return f"{storage!r} is a placeholder; put the folder of your pairs there"
    folder = Path(storage)
    if not folder.is_dir():
        return f"no such folder: {storage}"
    if not (folder / ANNOTATION_FILE).is_file():
        return f"{storage} holds no {ANNOTATION_FILE}"
    if not (folder / "image").is_dir():
        return f"{storage} holds no image/"
    return None


class AlignmentSource:
    """Pairs held in memory (names and texts only), split over readers sample by sample."""

    def __init__(self, folder: Path) -> None:
        self.entries = read_entries(folder)
        self.pairs = [entry for entry in self.entries if isinstance(entry, RawSample)]

    @property
    def units(self) -> int:
        return len(self.pairs)

    def read_pass(
        self, reader: int, readers: int, rng: random.Random
    ) -> Iterator[RawSample | BadSample]:
        pairs = self.pairs[reader::readers] if len(self.pairs) >= readers else list(self.pairs)
        rng.shuffle(pairs)
        yield from pairs

    def read_in_order(self) -> Iterator[RawSample | BadSample]:
        yield from self.entries


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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{file}: must hold {{"annotations": [{{"image_id": …, "caption": …}}, …]}} '
            f"({type(error).__name__}: {error})"
        ) from error
    files = {
        image.stem: image
        for image in sorted((folder / "image").iterdir())
        if image.suffix.lower().lstrip(".") in IMAGE_SUFFIXES
    }
    samples: list[RawSample | BadSample] = []
    wordless, missing = [], []
    for name, text in entries:
        if not isinstance(text, str):
            wordless.append(name)
            samples.append(BadSample(name, f"the caption is {text!r}, not a text"))
        elif name not in files:
            missing.append(name)
            samples.append(BadSample(name, f"no such image in {folder / 'image'}"))
        else:
            samples.append(RawSample(name, files[name], text))
    if len(wordless) + len(missing) == len(samples):
        raise DataError(f"{file}: none of its {len(entries)} images is in {folder / 'image'}")
    if wordless:
        text = "%s: %d captions are no text and left out (first: %s)"
        logger.warning(text, folder, len(wordless), ", ".join(wordless[:3]))
    if missing:
        text = "%s: %d of %d images are missing and left out (first: %s)"
        logger.warning(text, folder, len(missing), len(entries), ", ".join(missing[:3]))
    return samples
