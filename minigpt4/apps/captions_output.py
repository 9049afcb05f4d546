"""Caption output: one file of JSON lines in input order, to which rows are only ever added.

A run that was interrupted continues after the last whole line. The settings are in a file next to
it, so that rows of others are not added.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from minigpt4.config import Config
from minigpt4.errors import ConfigError, one_line
from minigpt4.files import JsonLines, take_lock, write_atomically

_RECORD = ".settings.json"  # after the output's name
_NAMED = 3  # settings that a message names


class CaptionOutput:
    """The output file with its number of ``rows``, of which some have ``failed``.

    It is locked while this process works on it.

    Raises:
        MiniGPT4Error: for an output of other settings, one that another process is writing, or one
            that cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        self.path = path
        self.rows = self.failed = 0
        self._lines = JsonLines(path)
        self._waiting: dict[int, dict[str, Any]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not inherited by other programs: the lock ends with this process.
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except (OSError, ValueError) as error:
            text = f"--output {path}: cannot be written ({one_line(error)}); choose another"
            raise ConfigError(text) from error
        try:
            self._begin(settings, overwrite)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._file)

    def add(self, numbered: Sequence[tuple[int, dict[str, Any]]]) -> int:
        """Take rows in any order, with their place in the input; return how many were written."""
        self._waiting.update((number, row) for number, row in numbered if number >= self.rows)
        ready: list[dict[str, Any]] = []
        while (row := self._waiting.pop(self.rows + len(ready), None)) is not None:
            ready.append(row)
        self._lines.append(*ready)
        self._count(ready)
        return len(ready)

    def _count(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows += len(rows)
        self.failed += sum("error" in row for row in rows)

    def _begin(self, settings: Mapping[str, Any], overwrite: bool) -> None:
        if not take_lock(self._file):
            text = f"--output {self.path}: another process is writing it; wait, or choose another"
            raise ConfigError(text)
        record = self.path.with_name(self.path.name + _RECORD)
        if overwrite:
            self._lines.truncate(0)
        if self._lines.size == 0:
            content = json.dumps(settings, indent=2, default=str) + "\n"
            write_atomically(record, lambda file: file.write(content.encode()))
            return
        try:
            saved = dict(json.loads(record.read_bytes()))
        except (OSError, ValueError, TypeError):
            self._refuse("is there already, and no run that could go on has written it")
        if named := name_differences(saved, settings):
            self._refuse(f"was made with other settings ({named})")
        whole = 0  # bytes; half a line at the end is cut off
        with open(self.path, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                try:
                    self._count([dict(json.loads(line))])
                except (ValueError, TypeError):
                    self._refuse(f"holds something else in line {self.rows + 1}")
                whole += len(line)
        self._lines.truncate(whole)

    def _refuse(self, reason: str) -> NoReturn:
        raise ConfigError(
            f"--output {self.path}: {reason}; choose another, or start again with --overwrite"
        )


def settings_of(config: Config, prompt: str, rows: int, digest: str) -> dict[str, Any]:
    """Return the input, the prompt, and the settings of the model and the generation.

    Trained weights are compared by their content: their name may now be that of others.
    """
    named = config.model.get("ckpt") or []
    files = [named] if isinstance(named, str) else list(named)
    sections = {name: part for name, part in config.resolved().items() if name != "run"}
    return {
        "--prompt": prompt,
        "--input": {"rows": rows, "sha256": digest},
        "trained weights": {file: _digest_of(file) for file in files},
        **sections,
    }


def _digest_of(file: str) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def name_differences(saved: Any, settings: Mapping[str, Any]) -> str:
    """Name the first settings that are not as saved; an empty text if all are."""
    differing = _differences(saved, json.loads(json.dumps(settings, default=str)))
    return ", ".join(differing[:_NAMED]) + (", …" if len(differing) > _NAMED else "")


def _differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Return the dotted names of what differs; input and weights differ as a whole."""
    whole = name in ("--input", "trained weights")
    if whole or not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [name]
    return [
        found
        for key in dict.fromkeys([*one, *other])
        for found in _differences(one.get(key), other.get(key), f"{name}.{key}".lstrip("."))
    ]
