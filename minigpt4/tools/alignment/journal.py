"""Journal: JSON lines that are only ever added to; what is in it has happened, whatever follows."""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt4.apps.captions_input import encode
from minigpt4.errors import DataError, MiniGPT4Error, one_line


class Journal:
    """A file of rows, read once and added to; safe to share among threads.

    Half a line at its end, which a kill leaves, is taken away.

    Args:
        path: Made where there is none.

    Attributes:
        rows: All that is in it.

    Raises:
        MiniGPT4Error: for a file that cannot be read or written, or with a line of something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._adding = threading.Lock()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise self._full(error) from error
        try:
            self._length = self._read()
            os.ftruncate(self._file, self._length)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows, on disk when this returns.

        Raises:
            MiniGPT4Error: when the disk is full; none of the rows counts then.
        """
        content = b"".join(map(encode, rows))
        with self._adding:
            try:
                left = memoryview(content)
                while left:
                    left = left[os.write(self._file, left) :]
                os.fsync(self._file)
            except OSError as error:
                os.ftruncate(self._file, self._length)  # or the next row would join half of one
                raise self._full(error) from error
            self._length += len(content)
            self.rows += map(dict, rows)

    def _read(self) -> int:
        """The length of all whole lines."""
        whole = 0
        with open(self.path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    self.rows.append(dict(json.loads(line)))
                except (ValueError, TypeError) as error:
                    text = f"{self.path}:{number}: not a line of this command ({one_line(error)})"
                    raise DataError(f"{text}; choose another --output") from error
                whole += len(line)
        return whole

    def _full(self, error: OSError) -> MiniGPT4Error:
        return MiniGPT4Error(
            f"{self.path}: cannot be written ({one_line(error)}); what is in it is safe: free "
            "space, and the same command goes on"
        )
