"""Pairs: a user's own rows in a file, a folder or shards → samples, without any code.

A row has images (or none) and a caption, an instruction with its answer, or a conversation; which
of its fields are which is told in ``row_texts.py``.
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy

from minigpt4.config.checks import is_placeholder
from minigpt4.datasets.caption_shards import ShardSource, check_shards, list_shards
from minigpt4.datasets.cc_sbu_align import ANNOTATION_FILE, read_entries
from minigpt4.datasets.own_rows.row_texts import (
    OUTSIDE,
    TEXTS,
    RowError,
    evaluation_facts,
    image_file,
    image_names,
    row_text,
)
from minigpt4.datasets.samples import IMAGE_SUFFIXES, BadSample, RawSample, Source, printable
from minigpt4.datasets.splits import ALL, Side, place_of
from minigpt4.errors import DataError, one_line
from minigpt4.row_files import SUFFIXES, Row, RowFile

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.json", "metadata.tsv")
_SIDECARS = (".txt", ".json")
_WINDOW = 1000  # samples of shards that are shuffled together

Storage = str | list[str]


def check_storage(storage: Storage) -> str | None:
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


def names_shards(storage: Storage) -> bool:
    """Whether a storage is of shards; a list always is."""
    if not isinstance(storage, str):
        return True
    if os.path.isdir(storage):
        with contextlib.suppress(OSError):  # one that may not be read is told where it is read
            return any(name.endswith(".tar") for name in os.listdir(storage))
        return False
    return not storage.lower().endswith(SUFFIXES)


def open_storage(storage: Storage, image_root: str | None = None, side: Side = ALL) -> Source:
    """The rows of a storage.

    Args:
        storage: File, folder, or shards as ``list_shards`` has them.
        image_root: Folder that the rows' paths begin in; that of the file without.
        side: Of a split.

    Raises:
        DataError: for a storage without a good row, or one that goes wrong as a whole, with file
            and line; for a row whose image leaves ``image_root``.
    """
    if names_shards(storage):
        shards = [shard for shard in list_shards(storage) if os.path.isfile(shard)]
        return ShardSource(shards, _WINDOW, row_text, side)
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
    return ListSource(path, entries, side)


def stream_rows(
    storage: Storage, image_root: str | None = None
) -> Iterator[tuple[RawSample | BadSample, str | None]]:
    """Every row of a storage once, in little memory, with the ``id`` that it has of its own.

    Arguments and errors are those of :func:`open_storage`; here a path that leaves ``image_root``
    makes a row bad, and nothing else.
    """
    file = None if names_shards(storage) else _row_file(Path(str(storage)))
    if file is None:
        source = open_storage(storage, image_root)
        for unit in range(source.units):
            yield from ((sample, None) for sample in source.read(unit))
        return
    for row, sample in _RowReader(file, Path(image_root or file.parent)):
        yield sample, _own_id(row)


def _row_file(path: Path) -> Path | None:
    """The file of rows that a path is, or that lies in it."""
    if not path.is_dir():
        return path
    return next((path / name for name in _METADATA if (path / name).is_file()), None)


def _own_id(row: Row) -> str | None:
    identity = row.fields.get("id")
    return None if identity in (None, "") else str(identity)


def _beside(image: Path) -> RawSample | BadSample:
    """A picture with the text of the same name: its caption, or the fields of a row in json."""
    key = printable(str(image))
    file = next(filter(os.path.isfile, map(image.with_suffix, _SIDECARS)), None)
    if file is None:
        return BadSample(key, "no caption", f"no {' or '.join(_SIDECARS)} beside it")
    try:
        words = file.read_text(encoding="utf-8-sig")
        fields = json.loads(words) if file.suffix == ".json" else {"caption": words.strip()}
        if not isinstance(fields, dict):
            raise RowError("unreadable row", f"{file.name} holds no object with keys")
        return RawSample(key, image, row_text(fields, images=1), facts=evaluation_facts(fields))
    except RowError as error:
        return BadSample(key, error.cause, error.detail)
    except (OSError, ValueError, RecursionError) as error:
        return BadSample(key, "unreadable row", f"{file.name}: {one_line(error)}")


def _image_files(sample: RawSample | BadSample) -> list[Path]:
    """The files that a sample's images are; none of one that is bad."""
    images = sample.images if isinstance(sample, RawSample) else ()
    return [image for image in images if isinstance(image, Path)]


class ListSource:
    """Rows that are held in memory, each a unit; their pictures are not."""

    window = 1  # the order of the units is shuffled already
    units_per_group = 512

    def __init__(self, folder: Path, entries: list[RawSample | BadSample], side: Side) -> None:
        self._folder = folder
        self.side = side
        self.entries = [entry for entry in entries if side.has(place_of(Path(entry.key).name))]
        self.units = len(self.entries)
        self.length = sum(isinstance(entry, RawSample) for entry in self.entries)
        if not self.length and side.part != "val":
            first = next((e for e in self.entries if isinstance(e, BadSample)), None)
            reason = f"; the first: {first.key}: {first.reason}" if first else ""
            raise DataError(f"{folder}: none of its {self.units} rows can be used{reason}")

    def files(self, unit: int) -> list[Path]:
        images = _image_files(self.entries[unit])
        texts = [image.with_suffix(suffix) for image in images for suffix in _SIDECARS]
        return [
            file for file in (self._folder / ANNOTATION_FILE, *texts, *images) if file.is_file()
        ]

    def read(self, unit: int) -> Iterator[RawSample | BadSample]:
        yield self.entries[unit]


class RowSource:
    """The rows of a file, each a unit; they are read from the disk whenever they are needed.

    Raises:
        DataError: as :func:`open_storage` has it.
    """

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
        if not self.length and side.part == "train":
            raise DataError(f"{file}: no good row is left to train on beside val_fraction")

    def files(self, unit: int) -> list[Path]:
        (sample,) = self.read(unit)
        return [self._reader.rows.path, *_image_files(sample)]

    def read(self, unit: int) -> Iterator[RawSample | BadSample]:
        number = self._numbers[unit]
        offset, line, *_ = self._places[number].tolist()
        yield self._reader.sample(self._reader.rows.read(offset), line, number + 1)


class _RowReader:
    """The rows of a file as samples; their paths begin in ``root``."""

    def __init__(self, file: Path, root: Path) -> None:
        self.rows = RowFile(file)
        self.root = root
        columns = self.rows.columns
        if columns and not {*columns} & {*TEXTS}:
            found = ", ".join(columns)
            raise DataError(f"{file}:1: none of its columns is {', '.join(TEXTS)}; it has {found}")

    def __iter__(self) -> Iterator[tuple[Row, RawSample | BadSample]]:
        """Every row, and the sample it is.

        Raises:
            DataError: where the file goes wrong as a whole, or holds no row.
        """
        row = None
        for number, row in enumerate(self.rows, 1):
            yield row, self.sample(row, row.line, number)
        if row is None:
            raise DataError(f"{self.rows.path}:1: holds no row")

    def sample(self, row: Row, line: int, number: int) -> RawSample | BadSample:
        """A row as a sample, whose key says where it stands: of a list, one line may hold all."""
        key = f"{self.rows.path}:{line}"
        if self.rows.form == ".json":
            key += f" (row {number:,})"
        if row.fault:
            return BadSample(key, "unreadable row", row.fault)
        try:
            images = tuple(image_file(name, self.root) for name in image_names(row.fields))
            text = row_text(row.fields, len(images))
        except RowError as error:
            return BadSample(key, error.cause, error.detail)
        image = images[0] if len(images) == 1 else images
        return RawSample(key, image, text, facts=evaluation_facts(row.fields))


_PLACE = [("offset", "i8"), ("line", "i8"), ("place", "f8"), ("good", "?")]  # of a row in its file


@functools.lru_cache(maxsize=4)
def _index(file: Path, root: Path, _changed: int, _size: int) -> numpy.ndarray[Any, Any]:
    """Return ``_PLACE`` of each row; an image that is missing makes no row bad here."""
    first: list[BadSample] = []
    places = numpy.fromiter(_places(_RowReader(file, root), first), _PLACE)
    if not places["good"].any():
        rows = f"none of its {len(places):,} rows can be used"
        raise DataError(f"{file}: {rows}; the first: {first[0].key}: {first[0].reason}")
    return places


def _places(reader: _RowReader, bad: list[BadSample]) -> Iterator[tuple[int, int, float, bool]]:
    for number, (row, sample) in enumerate(reader):
        if isinstance(sample, BadSample):
            bad[:] = bad or [sample]
            if sample.cause == OUTSIDE:
                raise DataError(
                    f"{sample.key}: {sample.detail}; only what lies in it is read: mend the row, "
                    "or name the folder above all pictures"
                )
        images, own = _image_files(sample), _own_id(row)
        name = f"row {number}" if own is None else f"id {own}"
        place = place_of(images[0].relative_to(reader.root).as_posix() if images else name)
        yield row.offset, row.line, place, isinstance(sample, RawSample)
