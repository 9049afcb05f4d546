"""Pairs: a user's own rows in a file, a folder or shards → samples, without any code.

A row has images (or none) and a caption, an instruction with its answer, or a conversation;
``row_texts.py`` tells which of its fields are which.
"""

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy

from minigpt4.config.checks import check_folder, is_placeholder
from minigpt4.datasets.caption_shards import (
    ShardSource,
    check_shards,
    existing_shards,
    missing_shards,
)
from minigpt4.datasets.cc_sbu_align import ANNOTATION_FILE, ListSource, image_files, read_entries
from minigpt4.datasets.options import (
    DataSetOptions,
    Storage,
    TextProcessors,
    build_dataset,
    training_processor,
)
from minigpt4.datasets.own_rows.row_texts import OUTSIDE, TEXTS, row_images, row_sample
from minigpt4.datasets.samples import (
    ALL,
    IMAGE_SUFFIXES,
    BadSample,
    DataSet,
    RawSample,
    Side,
    Source,
    place_of,
    printable,
)
from minigpt4.errors import DataError, one_line
from minigpt4.registry import BUILDERS, Hidden, Section
from minigpt4.row_files import SUFFIXES, Row, RowFile

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.json", "metadata.tsv")
_SIDECARS = (".txt", ".json")
_WINDOW = 1000  # samples of shards that are shuffled together

Rows = str | list[str]  # a file or folder; shards

logger = logging.getLogger(__name__)


def check_storage(storage: Rows) -> str | None:
    """Return a complaint about a storage that is invalid or has no first row."""
    if names_shards(storage):
        names = [storage] if isinstance(storage, str) else storage
        other = next((n for n in names if os.path.isfile(n) and ".tar" not in n.lower()), None)
        if other is not None:
            forms = ", ".join(SUFFIXES)
            return f"{other} is no shard (.tar); rows come from a folder or one file ({forms})"
        return check_shards(storage)
    assert isinstance(storage, str)
    if is_placeholder(storage):
        return f"{storage!r} is a placeholder; put the file or folder of your rows there"
    if not os.path.exists(storage):
        return f"no such file or folder: {storage}"
    if os.path.isdir(storage):
        return None
    try:
        next(iter(_RowReader(Path(storage), Path(storage).parent)), None)
    except DataError as error:
        return str(error)
    return None


def names_shards(storage: Rows) -> bool:
    """Return whether a storage is of shards; a list always is."""
    if not isinstance(storage, str):
        return True
    if os.path.isdir(storage):
        with contextlib.suppress(OSError):  # reported where it is read
            return any(name.endswith(".tar") for name in os.listdir(storage))
        return False
    return not storage.lower().endswith(SUFFIXES)


def open_storage(storage: Rows, image_root: str | None = None, side: Side = ALL) -> Source:
    """Return the rows of a storage on one side of a split.

    Their paths begin in ``image_root``, by default in the file's folder.

    Raises:
        DataError: for a storage without a good row, or one that is wrong as a whole, with file and
            line; for a row whose image leaves ``image_root``.
    """
    if names_shards(storage):
        return ShardSource(existing_shards(storage), _WINDOW, row_sample, side)
    path = Path(str(storage))
    if file := _row_file(path):
        return RowSource(_RowReader(file, Path(image_root or file.parent)), side)
    if (path / ANNOTATION_FILE).is_file():
        entries = read_entries(path)
    else:
        files = sorted(Path(at) / name for at, _, names in os.walk(path) for name in names)
        entries = [_beside(f) for f in files if f.suffix.lower().lstrip(".") in IMAGE_SUFFIXES]
        if not entries:
            names = f"{ANNOTATION_FILE}, {', '.join(_METADATA[:2])} or shards"
            raise DataError(f"{path}: holds neither pictures with a text beside each, nor {names}")
        if all(isinstance(entry, BadSample) for entry in entries):
            raise _none_usable(path, len(entries), entries[0])
    return ListSource(path, entries, side, _SIDECARS)


def _none_usable(path: Path, count: int, first: RawSample | BadSample) -> DataError:
    assert isinstance(first, BadSample)
    text = f"none of its {count:,} rows can be used; the first: {first.key}: {first.reason}"
    return DataError(f"{path}: {text}")


def stream_rows(
    storage: Rows, image_root: str | None = None
) -> Iterator[tuple[RawSample | BadSample, str | None]]:
    """Yield every row of a storage once, in little memory, with its own ``id``.

    Arguments and errors are those of :func:`open_storage`, but a path that leaves ``image_root``
    only makes its row bad.
    """
    if not names_shards(storage) and (file := _row_file(Path(str(storage)))):
        for row, sample in _RowReader(file, Path(image_root or file.parent)):
            yield sample, _own_id(row)
        return
    source = open_storage(storage, image_root)
    for unit in range(source.units):
        yield from ((sample, None) for sample in source.read(unit))


def _row_file(path: Path) -> Path | None:
    """Return the file of rows that a path is, or that is in it."""
    if not path.is_dir():
        return path
    return next((path / name for name in _METADATA if (path / name).is_file()), None)


def _own_id(row: Row) -> str | None:
    identity = row.fields.get("id")
    return None if identity in (None, "") else str(identity)


def _beside(image: Path) -> RawSample | BadSample:
    """Return an image with the text of the same name: its caption, or a row's fields in json."""
    key = printable(str(image))
    file = next(filter(os.path.isfile, map(image.with_suffix, _SIDECARS)), None)
    if file is None:
        return BadSample(key, "no caption", f"no {' or '.join(_SIDECARS)} beside it")
    try:
        words = file.read_text(encoding="utf-8-sig")
        fields = json.loads(words) if file.suffix == ".json" else {"caption": words.strip()}
    except (OSError, ValueError, RecursionError) as error:
        return BadSample(key, "unreadable row", f"{file.name}: {one_line(error)}")
    if not isinstance(fields, dict):
        return BadSample(key, "unreadable row", f"{file.name} holds no object with keys")
    return row_sample(key, fields, [image])


class RowSource:
    """The rows of a file, each a unit, which is read from the disk whenever it is needed."""

    window = 1  # the order of the units is shuffled already
    units_per_group = 512

    def __init__(self, reader: "_RowReader", side: Side) -> None:
        self._reader = reader
        self.side = side
        file = reader.rows.path
        found = file.stat()
        self._places = _index(file, reader.root, found.st_mtime_ns, found.st_size)
        self._numbers = numpy.flatnonzero([side.has(place) for place in self._places["place"]])
        self.units = len(self._numbers)
        self.length = int(self._places["good"][self._numbers].sum())

    def files(self, unit: int) -> list[Path]:
        (sample,) = self.read(unit)
        return [self._reader.rows.path, *image_files(sample)]

    def read(self, unit: int) -> Iterator[RawSample | BadSample]:
        number = self._numbers[unit]
        offset, line, *_ = self._places[number].tolist()
        yield self._reader.sample(self._reader.rows.read(offset), line, number + 1)


class _RowReader:
    """The rows of a file as samples, with paths that begin in ``root``."""

    def __init__(self, file: Path, root: Path) -> None:
        self.rows = RowFile(file)
        self.root = root
        columns = self.rows.columns
        if columns and not {*columns} & {*TEXTS}:
            found = ", ".join(columns)
            raise DataError(f"{file}:1: none of its columns is {', '.join(TEXTS)}; it has {found}")

    def __iter__(self) -> Iterator[tuple[Row, RawSample | BadSample]]:
        """Yield every row and its sample.

        Raises:
            DataError: where the file is wrong as a whole, or holds no row.
        """
        row = None
        for number, row in enumerate(self.rows, 1):
            yield row, self.sample(row, row.line, number)
        if row is None:
            raise DataError(f"{self.rows.path}:1: holds no row")

    def sample(self, row: Row, line: int, number: int) -> RawSample | BadSample:
        """Return a row as a sample; its key is the place: one line may hold a whole json list."""
        key = f"{self.rows.path}:{line}"
        if self.rows.form == ".json":
            key += f" (row {number:,})"
        if row.fault:
            return BadSample(key, "unreadable row", row.fault)
        return row_sample(key, row.fields, row_images(row.fields, self.root))


_PLACE = [("offset", "i8"), ("line", "i8"), ("place", "f8"), ("good", "?")]  # of a row in its file


@functools.lru_cache(maxsize=4)
def _index(file: Path, root: Path, _changed: int, _size: int) -> numpy.ndarray[Any, Any]:
    """Return ``_PLACE`` of each row; an image that is missing makes no row bad here."""
    reader = _RowReader(file, root)
    places = numpy.fromiter(_places(reader), _PLACE)
    if not places["good"].any():
        _, first = next(iter(reader))
        raise _none_usable(file, len(places), first)
    return places


def _places(reader: _RowReader) -> Iterator[tuple[int, int, float, bool]]:
    for number, (row, sample) in enumerate(reader):
        if isinstance(sample, BadSample) and sample.cause == OUTSIDE:
            raise DataError(
                f"{sample.key}: {sample.detail}; only what lies in it is read: fix the row, "
                "or name the folder above all pictures"
            )
        images, own = image_files(sample), _own_id(row)
        name = f"row {number}" if own is None else f"id {own}"
        place = place_of(images[0].relative_to(reader.root).as_posix() if images else name)
        yield row.offset, row.line, place, isinstance(sample, RawSample)


@dataclass(frozen=True, kw_only=True)
class PairOptions(DataSetOptions, Storage):
    """Options of a user's own rows.

    Attributes:
        storage: jsonl, json, csv or tsv file; folder of images with texts next to them, with a
            metadata.jsonl or .csv, or of the form of cc_sbu_align; shards.
        val_storage: Validation set: rows that an evaluation reads instead, of any of these forms.
        val_fraction: Fraction of the rows that an evaluation reads and a training does not, chosen
            by their images; 0: both read all.
        image_root: Folder that the rows' paths begin in, and which none may leave; without it that
            of the file.
        text_processor: Processor of captions, by split; other words reach the model as they are.
    """

    storage: Annotated[str | list[str], check_storage]
    val_storage: Annotated[str | list[str], check_storage] | None = None
    image_root: Annotated[str, check_folder] | None = None
    text_processor: TextProcessors = field(
        default_factory=functools.partial(training_processor, "plain_text")
    )

    @property
    def is_endless(self) -> bool:
        return names_shards(self.storage)

    def open(self, storage: Rows, side: Side = ALL) -> Source:
        return open_storage(storage, self.image_root, side)


@BUILDERS.register("pairs")
def build_pairs(name: Annotated[str, Hidden], options: Annotated[PairOptions, Section]) -> DataSet:
    """Build a user's own rows: images with captions, instructions and answers, or conversations."""
    missing = missing_shards(name, options.storage) if options.is_endless else ()
    captions = options.text_processor["train"].build()
    dataset = build_dataset(name, options, captions, missing)
    length, units = dataset.length, dataset.source.units
    if length is not None and length < units:
        text = "datasets.%s: %d of %d rows cannot be used; check-data lists them"
        logger.warning(text, name, units - length, units)
    return dataset
