"""Row files: jsonl, json, csv and tsv as rows with their line numbers, a row at a time.

First stop of every list that a user brings. Files of any length are read in little memory, and any
row again by its place.
"""

import codecs
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from minigpt4.datasets.own_rows.json_lists import JsonList
from minigpt4.errors import DataError, one_line, shown

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
LARGEST_ROW = 16 << 20  # bytes; a file of one endless line must not fill the memory
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        line: Where it begins, counted from 1.
        offset: Likewise in bytes; see :meth:`RowFile.read`.
        fields: Its values by name; of a csv all are texts. Empty with a fault.
        fault: Why it cannot be read; empty where it can.
    """

    line: int
    offset: int
    fields: dict[str, Any]
    fault: str = ""


class RowFile:
    """A file of rows: ``.jsonl``, ``.json`` (a list of objects), ``.csv`` or ``.tsv``.

    UTF-8, with or without a byte-order mark; any line ends; a csv's quoted fields may hold line
    breaks. Compared by path alone, so it can be sent to other processes.

    Args:
        path: The file.

    Raises:
        DataError: for a file that is none, or of another form; one line with file and line number.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.form = path.suffix.lower()
        if self.form not in SUFFIXES:
            raise DataError(f"{path}: must be one of {', '.join(SUFFIXES)}")
        if not path.is_file():
            raise DataError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
        self.columns = self._read_header() if self.form in _SEPARATORS else []

    def __iter__(self) -> Iterator[Row]:
        """Every row in order; one that cannot be read has a fault.

        Raises:
            DataError: where the file as a whole goes wrong, with file and line.
        """
        with self._open() as file:
            if self.form == ".jsonl":
                yield from self._lines(file)
            elif self.form == ".json":
                yield from (_row(value, *place) for value, *place in JsonList(self.path, file))
            else:
                rows = self._csv_rows(file)
                next(rows, None)  # the header
                yield from rows

    def read(self, offset: int) -> Row:
        """The row that begins at a place, as the iteration gave it; its line is not known (0).

        Raises:
            DataError: where the file is not what it was.
        """
        with self._open() as file:
            file.seek(offset)
            if self.form == ".jsonl":
                return self._json_row(file.readline(LARGEST_ROW + 1), 0, offset)
            if self.form in _SEPARATORS:
                for row in self._csv_rows(file, offset):
                    return Row(0, offset, row.fields, row.fault)
            else:
                for value, _, _ in JsonList(self.path, file, offset):
                    return _row(value, 0, offset)
        raise self._fault(0, f"ends before byte {offset:,}; it has changed meanwhile")

    def _open(self) -> BinaryIO:
        try:
            file = open(self.path, "rb")  # noqa: SIM115 -- the caller closes it
            start = file.read(4)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({one_line(error)})") from error
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            file.close()
            raise self._fault(1, "is UTF-16; save it as UTF-8")
        file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
        return file

    def _fault(self, line: int, text: str) -> DataError:
        return DataError(f"{self.path}:{line}: {text}" if line else f"{self.path}: {text}")

    def _lines(self, file: BinaryIO) -> Iterator[Row]:
        offset, number = file.tell(), 0
        begun = False
        while content := file.readline(LARGEST_ROW + 1):
            number += 1
            at, offset = offset, offset + len(content)
            if len(content) > LARGEST_ROW:
                while content and not content.endswith(b"\n"):
                    content = file.readline(LARGEST_ROW)
                    offset += len(content)
                yield Row(number, at, {}, f"longer than {LARGEST_ROW:,} bytes")
                continue
            if not content.strip():
                continue
            if not begun and content.lstrip().startswith(b"["):
                raise self._fault(
                    number, "a json list, not one row in each line; name the file .json"
                )
            begun = True
            yield self._json_row(content, number, at)

    def _json_row(self, content: bytes, line: int, offset: int) -> Row:
        try:
            value = json.loads(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            return Row(line, offset, {}, f"is not UTF-8 ({one_line(error)})")
        except (ValueError, RecursionError) as error:
            return Row(line, offset, {}, f"is not json ({one_line(error)})")
        return _row(value, line, offset)

    def _read_header(self) -> list[str]:
        with self._open() as file:
            row = next(self._csv_rows(file, named=False), None)
        if row is None:
            raise self._fault(1, "is empty; the first line names the columns")
        if row.fault:
            raise self._fault(row.line, row.fault)
        columns = [str(name).strip() for name in row.fields.values()]
        if len(columns) == 1:
            for mark, words in _NAMES.items():
                if mark in columns[0]:
                    wanted = _NAMES[_SEPARATORS[self.form]]
                    text = (
                        f"its columns are separated by {words}, not {wanted}: {shown(columns[0])}"
                    )
                    raise self._fault(row.line, f"{text}; save it with {wanted}")
        twice = next((name for name in columns if columns.count(name) > 1), None)
        if twice is not None:
            raise self._fault(row.line, f"two columns are called {shown(twice)}")
        return columns

    def _csv_rows(
        self, file: BinaryIO, offset: int | None = None, named: bool = True
    ) -> Iterator[Row]:
        """Records from where the file stands, the header too if it stands there."""
        place = _Place(self.path, file, file.tell() if offset is None else offset)
        # Strict: a quote that is never closed would otherwise swallow the rest in silence.
        form: dict[str, Any] = {"delimiter": _SEPARATORS[self.form], "strict": True}
        reader = csv.reader(place.lines(), **form)
        while True:
            line, at = place.begin_record()
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(line, at, {}, _csv_fault(error))
                # The lines that a stray quote swallowed are rows of their own.
                place.go_back()
                reader = csv.reader(place.lines(), **form)
                continue
            if not any(value.strip() for value in values):
                continue
            if named and len(values) != len(self.columns):
                text = f"has {len(values)} columns, the header {len(self.columns)}"
                yield Row(line, at, {}, text)
                place.go_back()
                reader = csv.reader(place.lines(), **form)
                continue
            if any("\udc80" <= c <= "\udcff" for value in values for c in value if c > "\x7f"):
                yield Row(line, at, {}, "is not UTF-8")
                continue
            names = self.columns if named else map(str, range(len(values)))
            yield Row(line, at, dict(zip(names, values, strict=True)))


def _csv_fault(error: csv.Error) -> str:
    if "new-line" in str(error):
        return "has line ends that are neither \\n nor \\r\\n; save the file with other ones"
    return f"is no row of a csv ({one_line(error)}); a stray quote?"


class _Place:
    """Lines of a file as texts, and how far they have been read."""

    def __init__(self, path: Path, file: BinaryIO, offset: int) -> None:
        self.path, self.file = path, file
        self.line, self.offset = 0, offset
        self._second: tuple[int, int] | None = None  # line and offset behind a record's first line

    def begin_record(self) -> tuple[int, int]:
        """Line and offset at which the next record begins."""
        self._second = None
        return self.line + 1, self.offset

    def go_back(self) -> None:
        """To the second line of the record that was read last."""
        if self._second is not None:
            self.line, self.offset = self._second
            self.file.seek(self.offset)

    def lines(self) -> Iterator[str]:
        while content := self.file.readline(LARGEST_ROW + 1):
            if len(content) > LARGEST_ROW:
                place = f"{self.path}:{self.line + 1}"
                raise DataError(f"{place}: a line longer than {LARGEST_ROW:,} bytes")
            self.line += 1
            self.offset += len(content)
            self._second = self._second or (self.line, self.offset)
            # What is no UTF-8 is found in its record.
            yield content.decode("utf-8", errors="surrogateescape")


def _row(value: Any, line: int, offset: int) -> Row:
    if not isinstance(value, dict):
        return Row(line, offset, {}, f"{shown(value)} is not an object with keys")
    return Row(line, offset, value)
