"""Files: written whole or not at all, and by one process at a time."""

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from minigpt4.errors import MiniGPT4Error, one_line


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a file, whole or not at all; ``MiniGPT4Error`` if it cannot."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError):  # torch wraps a full disk in the latter
            raise _unwritable(path, error) from error
        raise


def _unwritable(path: Path, error: Exception) -> MiniGPT4Error:
    return MiniGPT4Error(
        f"{path}: cannot be written ({one_line(error)}); "
        "free space or choose another folder (run.output_dir, --output, --target)"
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, with escapes for what UTF-8 cannot encode."""
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file for people to read, whole or not at all, and make its folder."""
    with contextlib.suppress(OSError):  # the writing fails then, too
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=2) + "\n")


def take_lock(descriptor: int) -> bool:
    """Lock an open file or folder, if its disk can; False when another process holds the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def lock_folder(folder: Path) -> int | None:
    """Return a descriptor that locks a folder until it is closed or the process ends.

    None when another process holds the lock. No file is left in the folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    if take_lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


class JsonLines:
    """A file of JSON lines that only grows; a resumed run cuts it where it was saved.

    A file that cannot be written is a ``MiniGPT4Error``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Bytes; 0 without a file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def clear(self) -> None:
        """Make the folder, and the file empty."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Write the rows, all of them or none."""
        texts = (json.dumps(plain(row), allow_nan=False, ensure_ascii=False) for row in rows)
        # Half a surrogate pair, which a caption may hold, becomes JSON's escape.
        lines = "".join(f"{text}\n" for text in texts).encode(errors="backslashreplace")
        before = self.size
        try:
            with open(self.path, "ab", buffering=0) as file:
                if file.write(lines) != len(lines):  # the disk had room for a part
                    os.truncate(self.path, before)
                    raise OSError("no space left for a line")
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def truncate(self, size: int) -> None:
        """Cut what an interrupted run had written after its last save; a shorter file stays."""
        try:
            if self.size > size:
                os.truncate(self.path, size)
        except OSError as error:
            raise _unwritable(self.path, error) from error


def plain(value: Any) -> Any:
    """Return a value for JSON, with None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, int | str) or value is None:
        return value
    if isinstance(value, Sequence):
        return [plain(part) for part in value]
    return float(value) if math.isfinite(value) else None
