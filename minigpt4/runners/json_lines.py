"""JSON lines: a file of a run's folder that grows line by line, each whole or not there."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt4.errors import MiniGPT4Error, one_line


class JsonLines:
    """A file that lines are put behind, and that a resumed run cuts where it was saved."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Bytes; 0 when there is none."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Write the rows, all of them or none.

        Raises:
            MiniGPT4Error: when the file cannot be written.
        """
        text = "".join(
            json.dumps(plain(row), allow_nan=False, ensure_ascii=False) + "\n" for row in rows
        )
        # Half a surrogate pair, which a caption's json may hold, becomes the escape that json has.
        lines = text.encode("utf-8", errors="backslashreplace")
        before = self.size
        try:
            with open(self.path, "ab", buffering=0) as file:
                if file.write(lines) != len(lines):  # the last bytes of a disk took a part of it
                    os.truncate(self.path, before)
                    raise OSError("no space left for a line")
        except OSError as error:
            raise self._not_written(error) from error

    def truncate(self, size: int) -> None:
        """Cut what an interrupted run had written after its last save.

        A file that is not longer stays as it is; the bytes before ``size`` are never touched.

        Raises:
            MiniGPT4Error: when the file cannot be written.
        """
        if self.size > size:
            try:
                os.truncate(self.path, size)
            except OSError as error:
                raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> MiniGPT4Error:
        return MiniGPT4Error(
            f"{self.path}: cannot be written ({one_line(error)}); free space there"
        )


def plain(value: Any) -> Any:
    """``value`` for JSON, which knows neither NaN nor infinity."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, int | str) or value is None:
        return value
    if isinstance(value, Sequence):
        return [plain(part) for part in value]
    return float(value) if math.isfinite(value) else None
