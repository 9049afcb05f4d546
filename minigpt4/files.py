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
    """What ``write`` puts into a file; the file is left as it was, or whole.

    Raises:
        MiniGPT4Error: when the disk is full or the folder cannot be written.
    """
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
        if not isinstance(error, OSError | RuntimeError):  # torch wraps a full disk in the latter
            raise
        raise MiniGPT4Error(
            f"{path}: cannot be written ({one_line(error)}); "
            "free space or choose another folder (run.output_dir, --output, --target)"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file for people to read, whole or not at all, and make its folder.

    Raises:
        MiniGPT4Error: when it cannot be written.
    """
    text = json.dumps(content, indent=2) + "\n"
    with contextlib.suppress(OSError):  # the writing fails then, too
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text.encode()))


def take_lock(descriptor: int) -> bool:
    """Whether nobody else holds an open file or folder; this process does until it ends.

    On a disk that knows no locks nobody is held up.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def lock_folder(folder: Path) -> int | None:
    """Lock a folder for this process; no file is left in it.

    Returns:
        The descriptor that holds the lock until it is closed or the process ends, however it ends;
        None when another process holds the lock.

    Raises:
        OSError: when the folder does not exist.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    if take_lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


class JsonLines:
    """A file of JSON lines that only grows; a resumed run cuts it where it was saved."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Bytes; 0 when there is none."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def clear(self) -> None:
        """Make the file empty, and its folder.

        Raises:
            MiniGPT4Error: when it cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
        except OSError as error:
            raise self._not_written(error) from error

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
