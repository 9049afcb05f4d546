"""A folder of curated pairs: ``filter_cap.json`` and ``image/``, the form of ``cc_sbu_align``."""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from minigpt4.config.checks import is_placeholder
from minigpt4.datasets.options import DataSetOptions, Storage, TextProcessors, build_dataset
from minigpt4.datasets.samples import (
    ALL,
    IMAGE_SUFFIXES,
    BadSample,
    DataSet,
    RawSample,
    Side,
    place_of,
    printable,
)
from minigpt4.errors import DataError, one_line, shown
from minigpt4.registry import BUILDERS, Hidden, Section

ANNOTATION_FILE = "filter_cap.json"

logger = logging.getLogger(__name__)


def check_alignment_folder(storage: str) -> str | None:
    """Return a complaint about a folder that lacks one of the two parts."""
    if is_placeholder(storage):
        return f"{storage!r} is a placeholder; put the folder of your pairs there"
    folder = Path(storage)
    if not os.path.isdir(folder):
        return f"no such folder: {storage}"
    if not (folder / ANNOTATION_FILE).is_file():
        return f"{storage} holds no {ANNOTATION_FILE}"
    if not (folder / "image").is_dir():
        return f"{storage} holds no image/"
    return None


class ListSource:
    """Samples in memory, without their images; each is a unit.

    Args:
        folder: Folder of the samples.
        entries: All samples.
        side: Side of a split.
        sidecars: Suffixes of the files next to an image that have its text.
    """

    window = 1  # the order of the units is shuffled already
    units_per_group = 512

    def __init__(
        self,
        folder: Path,
        entries: Sequence[RawSample | BadSample],
        side: Side = ALL,
        sidecars: Sequence[str] = (),
    ) -> None:
        self._folder, self.side, self._sidecars = folder, side, sidecars
        self.entries = [entry for entry in entries if side.has(place_of(Path(entry.key).name))]
        self.units = len(self.entries)
        self.length = sum(isinstance(entry, RawSample) for entry in self.entries)

    def files(self, unit: int) -> list[Path]:
        images = image_files(self.entries[unit])
        texts = [image.with_suffix(suffix) for image in images for suffix in self._sidecars]
        files = (self._folder / ANNOTATION_FILE, *texts, *images)
        return [file for file in files if file.is_file()]

    def read(self, unit: int) -> Iterator[RawSample | BadSample]:
        yield self.entries[unit]


def image_files(sample: RawSample | BadSample) -> list[Path]:
    """Return the files of a sample's images; none for a bad one."""
    images = sample.images if isinstance(sample, RawSample) else ()
    return [image for image in images if isinstance(image, Path)]


class AlignmentSource(ListSource):
    """The annotated pairs of a folder."""

    def __init__(self, folder: Path, side: Side = ALL) -> None:
        super().__init__(folder, read_entries(folder), side)


def read_entries(folder: Path) -> list[RawSample | BadSample]:
    """Return every annotated pair, in the order of the file.

    Those without an image or a text are a ``BadSample``; each kind is counted in one line.

    Raises:
        DataError: for annotations that cannot be read, an id that is a path, or no image at all.
    """
    file = folder / ANNOTATION_FILE
    entries = [
        (_id_of(entry, f"{file}: annotations[{number}]"), entry.get("caption"))
        for number, entry in enumerate(_annotations(file))
    ]
    images = _images(folder / "image")
    samples: list[RawSample | BadSample] = []
    for image_id, text in entries:
        name = printable(image_id)
        if not isinstance(text, str):
            samples.append(BadSample(name, "no caption", f"{shown(text)} is not a text"))
        elif image_id not in images:
            samples.append(BadSample(name, "no image", f"none in {folder / 'image'}"))
        else:
            samples.append(RawSample(name, images[image_id][0], text))
    bad = [sample for sample in samples if isinstance(sample, BadSample)]
    names = [name for name, _ in entries]
    if len(bad) == len(samples):
        raise DataError(_nothing_found(file, names))
    if wordless := [sample.key for sample in bad if sample.cause == "no caption"]:
        text = "%s: %d captions are no text and left out (first: %s)"
        logger.warning(text, folder, len(wordless), ", ".join(wordless[:3]))
    if missing := [sample.key for sample in bad if sample.cause == "no image"]:
        text = "%s: %d of %d images are missing and left out (first: %s)"
        logger.warning(text, folder, len(missing), len(entries), ", ".join(missing[:3]))
    _report_duplicates(folder, names, images)
    return samples


def _annotations(file: Path) -> list[dict[str, Any]]:
    """Return the file's entries; each is an object with an id and a caption of any kind."""
    try:
        content = json.loads(file.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not json"
        reason = "cannot be read" if isinstance(error, OSError) else reason
        raise _form_fault(file, f"{reason}: {one_line(error)}") from error
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise _form_fault(file, f"found a {type(content).__name__} without a list of that name")
    for number, entry in enumerate(annotations):
        if not isinstance(entry, dict):
            raise _form_fault(file, f"annotations[{number}] is {shown(entry)}")
        for key in ("image_id", "caption"):
            if key not in entry:
                raise _form_fault(file, f'annotations[{number}] has no "{key}"')
    return annotations


def _form_fault(file: Path, text: str) -> DataError:
    form = '{"annotations": [{"image_id": …, "caption": …}, …]}'
    return DataError(f"{file}: must hold {form}; {text}")


def _id_of(entry: dict[str, Any], place: str) -> str:
    """Return an entry's id as the name of a file; 2, "2" and 2.0 are the same."""
    given = entry["image_id"]
    if isinstance(given, float) and given.is_integer():
        given = int(given)  # programs for tables write 2.0 in a column with an empty cell
    if isinstance(given, bool) or not isinstance(given, str | int | float) or given != given:
        raise DataError(f"{place}: image_id must be a text or a number, not {shown(given)}")
    image_id = str(given)
    if not image_id.strip() or image_id in (".", "..") or re.search(r"[/\\\0]", image_id):
        text = "is no name of a file in image/; write it without folders and without suffix"
        raise DataError(f"{place}: image_id {shown(image_id)} {text}")
    return image_id


def _images(folder: Path) -> dict[str, list[Path]]:
    """Return image files by name without suffix; a jpg, which the original reads, is first."""
    try:
        with os.scandir(folder) as found:
            files = [folder / name for name in sorted(e.name for e in found if e.is_file())]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({one_line(error)})") from error
    images: dict[str, list[Path]] = {}
    for kind in IMAGE_SUFFIXES:
        for file in files:
            if file.suffix.lower() == f".{kind}":
                images.setdefault(file.stem, []).append(file)
    return images


def _nothing_found(file: Path, names: Sequence[str]) -> str:
    if not names:
        return f"{file}: its list of annotations is empty"
    text = f"{file}: none of its {len(names)} images is in {file.parent / 'image'}"
    ends = tuple(f".{kind}" for kind in IMAGE_SUFFIXES)
    advice = "; write ids without the suffix" if names[0].lower().endswith(ends) else ""
    return f"{text} (first: {printable(names[0])}){advice}"


def _report_duplicates(
    folder: Path, names: Sequence[str], images: Mapping[str, Sequence[Path]]
) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        text = "%s: %d ids have more than one caption; each is a pair of its own (first: %s)"
        logger.warning(text, folder, len(twice), printable(twice[0]))
    chosen = [images[name] for name in dict.fromkeys(names) if len(images.get(name, ())) > 1]
    if chosen:
        text = "%s: %d ids have more than one picture; %s is taken rather than %s, and so on"
        first, second = (printable(image.name) for image in chosen[0][:2])
        logger.warning(text, folder, len(chosen), first, second)


@dataclass(frozen=True, kw_only=True)
class FolderStorage(Storage):
    """The folder that holds ``filter_cap.json`` and ``image/``.

    Attributes:
        storage: What a training reads.
        val_storage: Validation set: the folder that a validation or an evaluation reads.
        val_fraction: Or the fraction of the pairs that is the validation set, chosen by their
            images' names.
    """

    storage: Annotated[str, check_alignment_folder]
    val_storage: Annotated[str, check_alignment_folder] | None = None


@dataclass(frozen=True, kw_only=True)
class AlignmentOptions(DataSetOptions):
    """Options of curated image-description pairs in a folder.

    Attributes:
        build_info: Where the folder lies.
        text_processor: Accepted because the original's YAML names one; as there, descriptions
            reach the model unprocessed.
        data_type: As in the original; only images exist.
    """

    build_info: FolderStorage
    text_processor: TextProcessors | None = None
    data_type: Literal["images"] = "images"

    def open(self, storage: str, side: Side = ALL) -> AlignmentSource:
        return AlignmentSource(Path(storage), side)


@BUILDERS.register("cc_sbu_align")
def build_cc_sbu_align(
    name: Annotated[str, Hidden], options: Annotated[AlignmentOptions, Section]
) -> DataSet:
    """Build curated image-description pairs in a folder (stage 2)."""
    return build_dataset(name, options, str)
