"""Output folders of the programs beside: new and whole, or begun once and gone on with.

Last stop before the disk: one process writes at a time, and nothing half-written looks finished.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minigpt4.errors import MiniGPT4Error, one_line
from minigpt4.files import lock_folder, write_json

SUMMARY = "summary.json"  # of a folder that is finished
SETTINGS = "settings.json"  # of a folder that one goes on with


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which becomes ``path`` when all went well; else nothing stays.

    Raises:
        MiniGPT4Error: where ``path`` exists, its disk is full, or somebody else writes it.
    """
    path = path.resolve()
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise MiniGPT4Error(f"{path}: exists already; remove it, or choose another --output")
    # Of a fixed name, so that what a killed process left is found and cleared.
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        with _lock(temporary):
            try:
                for left in temporary.iterdir():
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                yield temporary
                os.sync()  # before it has the name that says it is whole
                os.rename(temporary, path)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except OSError as error:
        raise MiniGPT4Error(
            f"{path}: cannot be written ({one_line(error)}); free space, or choose another --output"
        ) from error


@contextlib.contextmanager
def kept_folder(path: Path, settings: Mapping[str, Any]) -> Iterator[int]:
    """The lock of a folder that is filled in several goes, always with the same settings.

    A child that inherits the lock holds it after our death.

    Raises:
        MiniGPT4Error: where it was begun with others, holds something else, or is being filled.
    """
    file = path / SETTINGS
    try:
        path.mkdir(parents=True, exist_ok=True)
        with _lock(path) as lock:
            if file.exists():
                _compare(file, settings)
            elif any(not entry.name.startswith(".") for entry in path.iterdir()):
                raise MiniGPT4Error(f"{path}: holds other files already; choose another --output")
            else:
                write_json(file, settings)
            yield lock
    except OSError as error:
        raise MiniGPT4Error(
            f"{path}: cannot be written ({one_line(error)}); free space, or choose another "
            "--output; the same command goes on"
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a json file of ours.

    Raises:
        MiniGPT4Error: without one.
    """
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise MiniGPT4Error(f"{file}: cannot be read ({one_line(error)})") from error
    if not isinstance(value, dict):
        raise MiniGPT4Error(f"{file}: is no json object")
    return value


def _compare(file: Path, settings: Mapping[str, Any]) -> None:
    begun = read_json(file)
    for name in [*settings, *begun]:
        if begun.get(name) != settings.get(name):
            raise MiniGPT4Error(
                f"{file.parent}: was begun with another {name} (see {file.name}); "
                "give the same, or choose another --output"
            )


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """What one process at a time can hold; the system takes it back when that dies."""
    descriptor = lock_folder(folder)
    if descriptor is None:
        raise MiniGPT4Error(f"{folder}: another process is writing there; wait for it, or end it")
    try:
        yield descriptor
    finally:
        os.close(descriptor)
