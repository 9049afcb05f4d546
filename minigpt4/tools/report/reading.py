"""Files of a run as they are found: half lines, broken lines and odd values become notes."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from minigpt4.errors import one_line

MAX_LINE = 4 << 20  # bytes; a file of one endless line must not fill the memory

JsonObject = dict[str, Any]
_Kind = TypeVar("_Kind", JsonObject, list[Any])


class Notes:
    """What could not be read or was left out, each thing once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, text: str) -> None:
        if text not in self.lines:
            self.lines.append(text)


def read_rows(path: Path, notes: Notes) -> Iterator[JsonObject]:
    """Read the objects of a file of JSON lines; note a last line cut short and other lines."""
    broken: list[int] = []
    cut = False
    try:
        with open(path, "rb") as file:
            for place, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), 1):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    yield row
                elif line.strip():
                    cut = not line.endswith(b"\n") and len(line) < MAX_LINE
                    broken += [] if cut else [place]
    except FileNotFoundError:
        return
    except OSError as error:
        notes.add(f"{path}: cannot be read ({one_line(error)})")
    if broken:
        lines = f"{len(broken):,} lines are no JSON objects and left out"
        notes.add(f"{path}: {lines} (the first is line {broken[0]})")
    if cut:
        notes.add(f"{path}: the last line was cut short, as by a kill, and is left out")


def read_file(
    path: Path, notes: Notes, kind: type[_Kind], parse: Callable[[str], Any] = json.loads
) -> _Kind:
    """Read a JSON or YAML file that holds an object or a list; empty when it does not."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        notes.add(f"{path}: cannot be read ({one_line(error)})")
        return kind()
    if not isinstance(content, kind):
        notes.add(f"{path}: holds no {'keys' if kind is dict else 'list'} and is left out")
        return kind()
    return content


def part(content: Any, *keys: str) -> Any:
    """Return the value at a place of nested mappings; None where there is nothing."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def number(value: Any) -> float:
    """Return a finite number as a float; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def count(value: Any) -> int | None:
    """Return a whole number from 0; None for anything else."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value if is_whole and 0 <= value < 1 << 53 else None


def short_path(value: object) -> str:
    """Return the last two parts of a sample's path."""
    return "/".join(str(value).rstrip("/").split("/")[-2:])
