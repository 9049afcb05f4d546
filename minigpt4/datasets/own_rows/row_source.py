"""Row source: the rows of a user's file as samples, read from the disk whenever they are needed."""

import functools
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from minigpt4.datasets.own_rows.row_files import Row, RowFile
from minigpt4.datasets.own_rows.row_texts import (
    OUTSIDE,
    TEXTS,
    RowError,
    evaluation_facts,
    image_file,
    image_names,
    row_text,
)
from minigpt4.datasets.samples import BadSample, RawSample
from minigpt4.datasets.splits import Side, place_of
from minigpt4.errors import DataError


def image_files(sample: RawSample | BadSample) -> list[Path]:
    """The files that a sample's images are; none of one that is bad."""
    images = sample.images if isinstance(sample, RawSample) else ()
    return [image for image in images if isinstance(image, Path)]


class RowReader:
    """The rows of a file as samples."""

    def __init__(self, file: Path, root: Path) -> None:
        self.rows = RowFile(file)
        self.root = root
        named = {*self.rows.columns}
        if named and not named & {*TEXTS}:
            raise DataError(
                f"{file}:1: none of its columns is {', '.join(TEXTS)}; it has "
                f"{', '.join(self.rows.columns)}"
            )

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
            names = image_names(row.fields)
            images = tuple(image_file(name, self.root) for name in names)
            text = row_text(row.fields, len(images))
        except RowError as error:
            return BadSample(key, error.cause, error.detail)
        image = images[0] if len(images) == 1 else images
        return RawSample(key, image, text, facts=evaluation_facts(row.fields))


@dataclass(frozen=True)
class RowIndex:
    """Where the rows of a file lie.

    Attributes:
        offsets: In bytes.
        lines: Counted from 1.
        places: Of what :func:`_identity` gives; see :class:`Side`.
        good: 1 for rows that can be used, their images apart.
    """

    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    lines: "array[int]" = field(default_factory=lambda: array("q"))
    places: "array[float]" = field(default_factory=lambda: array("d"))
    good: bytearray = field(default_factory=bytearray)


@functools.lru_cache(maxsize=4)
def _index(file: Path, root: Path, _changed: int, _size: int) -> RowIndex:
    index, reader = RowIndex(), RowReader(file, root)
    first: BadSample | None = None
    for row, sample in reader:
        if isinstance(sample, BadSample):
            first = first or sample
            if sample.cause == OUTSIDE:
                raise DataError(
                    f"{sample.key}: {sample.detail}; only what lies in it is read: mend the row, "
                    "or name the folder above all pictures"
                )
        index.offsets.append(row.offset)
        index.lines.append(row.line)
        index.places.append(place_of(_identity(row, sample, root, len(index.places))))
        index.good.append(isinstance(sample, RawSample))
    if not any(index.good):
        assert first is not None
        raise DataError(
            f"{file}: none of its {len(index.good):,} rows can be used; the first: {first.key}: "
            f"{first.reason}"
        )
    return index


def _identity(row: Row, sample: RawSample | BadSample, root: Path, number: int) -> str:
    """By what a row is put on a side: its first image, its own id, or its number."""
    images = image_files(sample)
    if images:
        return images[0].relative_to(root).as_posix()
    identity = row.fields.get("id")
    return f"row {number}" if identity in (None, "") else f"id {identity}"


class RowSource:
    """The rows of a file, each a unit; they are read from the disk whenever they are needed.

    Args:
        file: jsonl, json, csv or tsv.
        root: Folder that the rows' paths begin in.
        side: Of a split.

    Raises:
        DataError: as :func:`open_storage` has it.
    """

    window = 1  # the order of the units is shuffled already
    units_per_group = 512

    def __init__(self, file: Path, root: Path, side: Side) -> None:
        self._reader = RowReader(file, root)
        self.side = side
        found = file.stat()
        self._index = _index(file, root, found.st_mtime_ns, found.st_size)
        numbers = (n for n, place in enumerate(self._index.places) if side.has(place))
        self._rows = array("q", numbers)
        self.units = len(self._rows)
        self.length = sum(self._index.good[number] for number in self._rows)
        if not self.length and side.part == "train":
            raise DataError(f"{file}: no good row is left to train on beside val_fraction")

    def files(self, unit: int) -> list[Path]:
        (sample,) = self.read(unit)
        return [self._reader.rows.path, *image_files(sample)]

    def read(self, unit: int) -> Iterator[RawSample | BadSample]:
        number = self._rows[unit]
        row = self._reader.rows.read(self._index.offsets[number])
        yield self._reader.sample(row, self._index.lines[number], number + 1)
