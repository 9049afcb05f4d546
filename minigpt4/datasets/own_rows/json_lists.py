"""Json lists: the elements of a list of any length, one after the other, in little memory."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from minigpt4.errors import DataError, one_line

LARGEST = 16 << 20  # characters of an element; one that never ends must not fill the memory
_CHUNK = 1 << 20  # bytes
_WHITE = " \t\r\n"
_NEAR_THE_END = 16  # characters; a word that a chunk cuts may be no json before the rest is there


class JsonList:
    """The objects of a json list, whatever its length.

    Args:
        path: For messages.
        file: Stands at the list's beginning, or at that of an element.
        element: Where that is; None at the list's beginning.

    Raises:
        DataError: from the iteration, where the list goes wrong, with file and line.
    """

    def __init__(self, path: Path, file: BinaryIO, element: int | None = None) -> None:
        self._path, self._file = path, file
        self._decoder = json.JSONDecoder()
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at = "", 0  # what is read, and how much of it is done
        self._ended = False
        self._number = 0  # elements begun
        self._line = 1
        self._offset = file.tell() if element is None else element  # of what is done, in bytes
        self._inside = element is not None

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        """Each element with its line, counted from 1, and its offset in bytes."""
        if not self._inside:
            found = self._next_character()
            if found != "[":
                raise self._fault(
                    "is empty; it must be a json list of rows"
                    if not found
                    else "must be a json list of rows ([{…}, …]); name a file with a row in each "
                    "line .jsonl"
                )
            self._advance(self._at + 1)
            if self._next_character() == "]":
                self._advance(self._at + 1)
                return self._check_end()
        while True:
            self._next_character()
            line, offset = self._line, self._offset
            self._number += 1
            yield self._value(), line, offset
            mark = self._next_character()
            if mark not in (",", "]"):
                raise self._fault(
                    "breaks off: its list is not closed" if not mark else "a comma is missing"
                )
            self._advance(self._at + 1)
            if mark == "]":
                return self._check_end()

    def _check_end(self) -> None:
        if self._next_character():
            raise self._fault("more follows behind the end of the list")

    def _fault(self, text: str, line: int | None = None) -> DataError:
        return DataError(f"{self._path}:{line or self._line}: {text}")

    def _read(self, size: int = _CHUNK) -> None:
        content = self._file.read(size)
        self._ended = not content
        try:
            more = self._utf8.decode(content, final=self._ended)
        except UnicodeDecodeError as error:
            raise self._fault(f"is not UTF-8 hereafter ({one_line(error)})") from error
        self._text, self._at = self._text[self._at :] + more, 0

    def _advance(self, to: int) -> None:
        done = self._text[self._at : to]
        self._line += done.count("\n")
        self._offset += len(done) if done.isascii() else len(done.encode())
        self._at = to

    def _next_character(self) -> str:
        """The next one that is not white; empty at the end."""
        while True:
            to = self._at
            while to < len(self._text) and self._text[to] in _WHITE:
                to += 1
            self._advance(to)
            if to < len(self._text):
                return self._text[to]
            if self._ended:
                return ""
            self._read()

    def _value(self) -> Any:
        size = _CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # A number at the very end may go on in what is not read yet.
                if end < len(self._text) or self._ended:
                    self._advance(end)
                    return value
            except json.JSONDecodeError as error:
                read = len(self._text.rstrip()) if self._ended else len(self._text) - _NEAR_THE_END
                cut = error.pos >= read or error.msg.startswith("Unterminated string")
                if self._ended or not cut:
                    line = self._line + self._text.count("\n", self._at, error.pos)
                    if self._ended and cut:
                        raise self._fault(
                            f"breaks off in row {self._number:,}", self._line
                        ) from error
                    raise self._fault(f"is not json ({error.msg})", line) from error
            except (ValueError, RecursionError) as error:
                raise self._fault(f"is not json ({one_line(error)})") from error
            if len(self._text) - self._at > LARGEST:
                raise self._fault(f"a row longer than {LARGEST:,} characters")
            self._read(size)
            size *= 2
