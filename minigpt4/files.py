"""Files: written whole or not at all, and by one process at a time."""

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

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


def take_lock(descriptor: int) -> bool:
    """Whether nobody else holds an open file or folder; this process does until it ends.

    On a disk that knows no locks nobody is held up.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True
