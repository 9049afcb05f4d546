"""JSON lists: the elements of a list of any length, one after another, in little memory.

The library for this, ijson, gives no offsets, by which a training comes back to an element; it also
refuses NaN and long integers, and replaces half a surrogate pair.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from minigpt4.errors import DataError, one_line

LARGEST = 16 << 20  # bytes of an element; one that never ends must not fill the memory
_WINDOW = 1 << 12  # bytes of an element that are read at first
_DECODER = json.JSONDecoder()


class JsonList:
    """A JSON list in an open file, which is at the list's beginning or at that of an element.

    All methods raise a ``DataError`` where the list goes wrong, with the file's ``path`` and line.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._at, self._line = file.tell(), 1  # of the first byte that is not done

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        """Yield each element with its line, counted from 1, and its offset in bytes."""
        mark, number = self._take(), 0
        if not mark:
            raise self._fault("is empty; it must be a json list of rows")
        if mark != b"[":
            text = "must be a json list of rows ([{…}, …])"
            raise self._fault(f"{text}; name a file with a row in each line .jsonl")
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
                if ended or size > LARGEST:
                    if error.pos < len(text.rstrip()) and not error.msg.startswith("Unterminated"):
                        line = text.count("\n", 0, error.pos)
                        raise self._fault(f"is not json ({error.msg})", line) from error
                    cut = f"breaks off in row {number:,}"
                    cut = cut if ended else f"a row longer than {LARGEST:,} bytes"
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
