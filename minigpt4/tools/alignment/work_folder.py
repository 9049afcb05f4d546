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
from minigpt4.files import JsonLines, take_lock, write_atomically

SETTINGS = "settings.json"
_LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder of a stage-2 set, and keep other processes away from it.

    Raises:
        ConfigError: for a folder of something else, one that another process works on, or one that
            cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(name for name in os.listdir(folder) if name != _LOCK)
        if others and SETTINGS not in others:
            text = f"--output {folder}: holds something else ({others[0]}, …); name a new folder"
            raise ConfigError(text)
        lock = open(folder / _LOCK, "a")  # noqa: SIM115 -- closed below, however this ends
    except OSError as error:
        text = f"--output {folder}: cannot be written ({one_line(error)}); choose another"
        raise ConfigError(text) from error
    with lock:
        if not take_lock(lock.fileno()):
            text = f"--output {folder}: another process is working on it; wait for its end"
            raise ConfigError(text)
        yield


def settle(folder: Path, step: str, settings: Mapping[str, Any]) -> None:
    """Do a step with these settings, now and whenever the work goes on.

    Raises:
        ConfigError: where it was begun with others; it names them.
    """
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
    """Show a bar that leaves room for log lines."""
    calm = 0.5 if sys.stderr.isatty() else 15.0  # seconds between redraws; few in a log file
    with (
        logging_redirect_tqdm(),
        tqdm(desc=title, total=total, initial=done, mininterval=calm, unit=unit) as bar,
    ):
        yield bar


class Journal:
    """JSON lines that are only added to: what is in it has happened, whatever follows.

    Half a line at its end, which a kill leaves, is removed.

    Raises:
        MiniGPT4Error: for a file that cannot be read or written, or with a line of something else.
    """

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
        """Append rows, all of them or none; one thread at a time.

        Raises:
            MiniGPT4Error: when the disk is full.
        """
        self._lines.append(*rows)
        self.rows += map(dict, rows)

    def replay(self, take: Callable[[dict[str, Any]], None]) -> None:
        """Give each row to a function; one that it cannot take is a DataError."""
        self._for_each(self.rows, take)

    def _for_each(self, items: Sequence[Any], take: Callable[[Any], None]) -> None:
        for number, item in enumerate(items, 1):
            try:
                take(item)
            except (KeyError, ValueError, TypeError) as error:
                text = f"{self.path}:{number}: not a line of this command ({one_line(error)})"
                raise DataError(f"{text}; choose another --output") from error
