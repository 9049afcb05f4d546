"""Row files: jsonl, json, csv and tsv as rows with their line numbers, a row at a time.

Files of any length are read in little memory, and any row again by its place.
"""

import codecs
import csv
import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from minigpt4.errors import DataError, one_line, shown

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
LARGEST_ROW = 16 << 20  # bytes; a row without an end must not fill the memory
_WINDOW = 1 << 12  # bytes of a json list's element in the first read
_DECODER = json.JSONDecoder()
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        line: Number of its first line, from 1.
        offset: Position of its first byte; see :meth:`RowFile.read`.
        fields: Values by name, all texts in a csv; empty with a fault.
        fault: Why it cannot be read, if it cannot.
    """

    line: int
    offset: int
    fields: dict[str, Any]
    fault: str = ""


class RowFile:
    """A file of rows: ``.jsonl``, ``.json`` (a list of objects), ``.csv`` or ``.tsv``.

    UTF-8, with or without a byte-order mark; any line ends; a csv's quoted fields may hold line
    breaks.

    Raises:
        DataError: for a missing file, or another form; one line with file and line number.
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
        """Yield every row in order; one that cannot be read has a fault.

        Raises:
            DataError: where the file as a whole is wrong, with file and line.
        """
        with self._open() as file:
            if self.form == ".jsonl":
                yield from self._lines(file)
            elif self.form == ".json":
                yield from itertools.starmap(_row, _JsonList(self.path, file))
            else:
                yield from itertools.islice(self._csv_rows(file), 1, None)  # after the header

    def read(self, offset: int) -> Row:
        """Return the row at an ``offset``, as the iteration gave it, with 0 as its line.

        Raises:
            DataError: where the file has changed.
        """
        with self._open() as file:
            file.seek(offset)
            if self.form == ".json":
                return _row(_JsonList(self.path, file).value(), 0, offset)
            rows = self._lines(file, begun=True) if self.form == ".jsonl" else self._csv_rows(file)
            row = next(rows, None)
        if row is None:
            raise DataError(f"{self.path}: ends before byte {offset:,}; it has changed meanwhile")
        return dataclasses.replace(row, line=0)

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
        return DataError(f"{self.path}:{line}: {text}")

    def _lines(self, file: BinaryIO, begun: bool = False) -> Iterator[Row]:
        for number in itertools.count(1):
            at = file.tell()
            content = file.readline(LARGEST_ROW + 1)
            if not content:
                return
            if len(content) > LARGEST_ROW:
                while content and not content.endswith(b"\n"):
                    content = file.readline(LARGEST_ROW)
                yield Row(number, at, {}, f"longer than {LARGEST_ROW:,} bytes")
            elif content.strip():
                if not begun and content.lstrip().startswith(b"["):
                    text = "a json list, not one row in each line; name the file .json"
                    raise self._fault(number, text)
                begun = True
                try:
                    row = _row(json.loads(content.decode("utf-8")), number, at)
                except (ValueError, RecursionError) as error:
                    form = "UTF-8" if isinstance(error, UnicodeDecodeError) else "json"
                    row = Row(number, at, {}, f"is not {form} ({one_line(error)})")
                yield row

    def _read_header(self) -> list[str]:
        with self._open() as file:
            row = next(self._csv_rows(file, named=False), None)
        if row is None:
            raise self._fault(1, "is empty; the first line names the columns")
        if row.fault:
            raise self._fault(row.line, row.fault)
        columns = [str(name).strip() for name in row.fields.values()]
        other = next((mark for mark in _NAMES if mark in columns[0]), None)
        if len(columns) == 1 and other:
            wanted = _NAMES[_SEPARATORS[self.form]]
            text = f"its columns are separated by {_NAMES[other]}, not {wanted}"
            raise self._fault(row.line, f"{text}: {shown(columns[0])}; save it with {wanted}")
        twice = next((name for name in columns if columns.count(name) > 1), None)
        if twice is not None:
            raise self._fault(row.line, f"two columns are called {shown(twice)}")
        return columns

    def _csv_rows(self, file: BinaryIO, named: bool = True) -> Iterator[Row]:
        """Yield records from where the file is, the header too if it is there."""
        lines = _CsvLines(self.path, file)
        # Strict: otherwise an unclosed quote would silently swallow the rest.
        reader = csv.reader(lines, delimiter=_SEPARATORS[self.form], strict=True)
        while True:
            line, at = lines.begin_record()
            fault = ""
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                values, fault = [], f"is no row of a csv ({one_line(error)}); a stray quote?"
                if "new-line" in str(error):
                    fault = "has line ends that are neither \\n nor \\r\\n; save it with others"
            if not fault and not any(value.strip() for value in values):
                continue
            if not fault and named and len(values) != len(self.columns):
                fault = f"has {len(values)} columns, the header {len(self.columns)}"
            if fault:
                lines.go_back()  # the lines that a stray quote swallowed are rows
            elif any("\udc80" <= c <= "\udcff" for value in values for c in value if c > "\x7f"):
                fault = "is not UTF-8"
            names = self.columns if named else map(str, range(len(values)))
            yield Row(line, at, {} if fault else dict(zip(names, values, strict=True)), fault)


class _CsvLines:
    """Lines of a file as texts for a csv reader."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._line = 0
        self._second: tuple[int, int] | None = None  # line and offset after a record's first line

    def begin_record(self) -> tuple[int, int]:
        """Return line and offset at which the next record begins."""
        self._second = None
        return self._line + 1, self._file.tell()

    def go_back(self) -> None:
        """Go to the second line of the last record."""
        if self._second is not None:
            self._line, offset = self._second
            self._file.seek(offset)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        content = self._file.readline(LARGEST_ROW + 1)
        if not content:
            raise StopIteration
        self._line += 1
        if len(content) > LARGEST_ROW:
            text = f"a line longer than {LARGEST_ROW:,} bytes"
            raise DataError(f"{self._path}:{self._line}: {text}")
        self._second = self._second or (self._line, self._file.tell())
        # Bytes that are not UTF-8 are reported for their record.
        return content.decode("utf-8", errors="surrogateescape")


class _JsonList:
    """A JSON list in an open file, which is at the list's beginning or at that of an element.

    ijson gives no offsets, and refuses NaN and long integers. Where the list is wrong, every method
    raises a ``DataError`` with file and line.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._at, self._line = file.tell(), 1  # of the next byte

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        """Yield each element with its line, counted from 1, and its offset in bytes."""
        mark, number = self._take(), 0
        if not mark:
            raise self._fault("is empty; it must be a json list of rows")
        if mark != b"[":
            form = "a json list of rows ([{…}, …])"
            raise self._fault(f"must be {form}; name a file with a row in each line .jsonl")
        if self._peek() == b"]":
            mark = self._take()
        while mark != b"]":
            number += 1
            self._peek()
            line, offset = self._line, self._at
            yield self.value(number), line, offset
            mark = self._take()
            if mark not in (b",", b"]"):
                text = "a comma is missing" if mark else "breaks off: its list is not closed"
                raise self._fault(text)
        if self._peek():
            raise self._fault("more follows behind the end of the list")

    def value(self, number: int = 1) -> Any:
        """Pass the element that begins here, of this number, and return it."""
        size = _WINDOW
        while True:
            self._file.seek(self._at)
            content = self._file.read(size)
            text, ended = content.decode(errors="surrogateescape"), len(content) < size
            try:
                value, end = _DECODER.raw_decode(text)
                if end < len(text) or ended:  # a number at the very end may continue
                    self._pass(text[:end].encode())
                    return value
            except UnicodeEncodeError as error:
                raise self._fault("is not UTF-8") from error
            except json.JSONDecodeError as error:
                if ended or size > LARGEST_ROW:
                    if error.pos < len(text.rstrip()) and not error.msg.startswith("Unterminated"):
                        line = text.count("\n", 0, error.pos)
                        raise self._fault(f"is not json ({error.msg})", line) from error
                    cut = f"breaks off in row {number:,}"
                    cut = cut if ended else f"a row longer than {LARGEST_ROW:,} bytes"
                    raise self._fault(cut) from error
            except (ValueError, RecursionError) as error:
                raise self._fault(f"is not json ({one_line(error)})") from error
            size *= 2

    def _fault(self, text: str, lines: int = 0) -> DataError:
        return DataError(f"{self._path}:{self._line + lines}: {text}")

    def _pass(self, done: bytes) -> None:
        self._at += len(done)
        self._line += done.count(b"\n")

    def _peek(self) -> bytes:
        """Pass white space and return the byte after it, which is empty at the end."""
        self._file.seek(self._at)
        while block := self._file.read(_WINDOW):
            rest = block.lstrip(b" \t\r\n")
            self._pass(block[: len(block) - len(rest)])
            if rest:
                return rest[:1]
        return b""

    def _take(self) -> bytes:
        """Pass white space and the byte after it, and return that."""
        mark = self._peek()
        self._pass(mark)
        return mark


def _row(value: Any, line: int, offset: int) -> Row:
    if not isinstance(value, dict):
        return Row(line, offset, {}, f"{shown(value)} is not an object with keys")
    return Row(line, offset, value)
