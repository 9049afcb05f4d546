"""Work folder: the output, of one process at a time, and what was decided about it for good."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minigpt4.errors import ConfigError, one_line
from minigpt4.files import take_lock, write_atomically

SETTINGS = "settings.json"
_LOCK = ".lock"
_NAMED = 3  # settings that a message names


class WorkFolder:
    """The folder of a stage-2 set in the making, locked while this process works on it.

    Args:
        folder: Made where there is none.

    Raises:
        ConfigError: for a folder of something else, one that another process works on, or one that
            cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            others = [name for name in os.listdir(folder) if name != _LOCK]
            if others and SETTINGS not in others:
                text = f"--output {folder}: holds something else ({sorted(others)[0]}, …)"
                raise ConfigError(f"{text}; name a new folder")
            # Not inherited by other programs: the lock goes with this process, however it ends.
            self._lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            text = f"--output {folder}: cannot be written ({one_line(error)}); choose another"
            raise ConfigError(text) from error
        try:
            self._take_lock()
            self._settings = self._read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._lock)

    def __enter__(self) -> "WorkFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def settle(self, step: str, settings: Mapping[str, Any]) -> None:
        """Do a step with these settings, now and whenever the work goes on.

        Raises:
            ConfigError: where it was begun with others; it names them.
        """
        wanted = json.loads(json.dumps(settings, default=str))
        held = self._settings.get(step)
        if held is None:
            self._settings[step] = wanted
            content = json.dumps(self._settings, indent=2) + "\n"
            path = self.folder / SETTINGS
            write_atomically(path, lambda file: file.write(content.encode()))
        elif differing := list(_differences(held, wanted)):
            named = ", ".join(differing[:_NAMED]) + (", …" if len(differing) > _NAMED else "")
            raise ConfigError(
                f"--output {self.folder}: was begun with other settings ({named}); give those, or "
                "name a new folder"
            )

    def _take_lock(self) -> None:
        if not take_lock(self._lock):
            text = f"--output {self.folder}: another process is working on it; wait for its end"
            raise ConfigError(text)

    def _read(self) -> dict[str, Any]:
        path = self.folder / SETTINGS
        if not path.exists():
            return {}
        try:
            return dict(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{path}: cannot be read ({one_line(error)})") from error


def _differences(one: Any, other: Any, name: str = "") -> Iterator[str]:
    """Dotted names of what differs."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        if one != other:
            yield name
        return
    for key in dict.fromkeys([*one, *other]):
        yield from _differences(one.get(key), other.get(key), f"{name}.{key}".lstrip("."))
