"""Work folder: the output, for one process at a time; its settings and its journals."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from minigpt4.apps.captions_output import name_differences
from minigpt4.errors import ConfigError, DataError, MiniGPT4Error, one_line
from minigpt4.files import JsonLines, lock_folder, write_atomically

SETTINGS = "settings.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder of a stage-2 set, and keep other processes away from it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(os.listdir(folder))
        if others and SETTINGS not in others:
            text = f"--output {folder}: holds something else ({others[0]}, …); name a new folder"
            raise ConfigError(text)
        lock = lock_folder(folder)
    except OSError as error:
        text = f"--output {folder}: cannot be written ({one_line(error)}); choose another"
        raise ConfigError(text) from error
    if lock is None:
        raise ConfigError(f"--output {folder}: another process is working on it; wait for its end")
    try:
        yield
    finally:
        os.close(lock)


def settle(folder: Path, step: str, settings: Mapping[str, Any]) -> None:
    """Keep the settings of a step, or refuse others than it was begun with."""
    path = folder / SETTINGS
    try:
        held = dict(json.loads(path.read_bytes())) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read ({one_line(error)})") from error
    if step not in held:
        content = json.dumps({**held, step: settings}, indent=2, default=str) + "\n"
        write_atomically(path, lambda file: file.write(content.encode()))
    elif named := name_differences(held[step], settings):
        text = f"--output {folder}: was begun with other settings ({named}); give those, or"
        raise ConfigError(f"{text} name a new folder")


@contextmanager
def progress_bar(title: str, total: int, done: int, unit: str) -> "Iterator[tqdm[Any]]":
    """Show a bar that log lines do not break."""
    calm = 0.5 if sys.stderr.isatty() else 15.0  # seconds between redraws; few in a log file
    with (
        logging_redirect_tqdm(),
        tqdm(desc=title, total=total, initial=done, mininterval=calm, unit=unit) as bar,
    ):
        yield bar


class Journal:
    """JSON lines that are only appended; half a line that a kill left at the end is removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._lines = JsonLines(path)
        try:
            path.touch()
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise MiniGPT4Error(f"{path}: cannot be written ({one_line(error)})") from error
        self._for_each(lines[:-1], lambda line: self.rows.append(dict(json.loads(line))))
        self._lines.truncate(self._lines.size - len(lines[-1]))

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows, all of them or none; one thread at a time."""
        self._lines.append(*rows)
        self.rows += map(dict, rows)

    def replay(self, take: Callable[[dict[str, Any]], None]) -> None:
        """Pass each row to a function; raise DataError for a row that it cannot take."""
        self._for_each(self.rows, take)

    def _for_each(self, items: Sequence[Any], take: Callable[[Any], None]) -> None:
        for number, item in enumerate(items, 1):
            try:
                take(item)
            except (KeyError, ValueError, TypeError) as error:
                text = f"{self.path}:{number}: not a line of this command ({one_line(error)})"
                raise DataError(f"{text}; choose another --output") from error
