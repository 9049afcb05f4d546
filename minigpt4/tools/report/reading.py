"""Files of a run as they are found: half lines, broken lines and odd values become notes."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from minigpt4.errors import one_line

LONGEST_LINE = 4 << 20  # bytes; a file of one endless line must not fill the memory


class Notes:
    """What could not be read or was left out, for the reader of the report.

    Attributes:
        lines: Each thing once, in the order in which it was met.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, text: str) -> None:
        if text not in self.lines:
            self.lines.append(text)


def read_rows(path: Path, notes: Notes) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; none when there is no file.

    A last line that a kill cut short and lines that are no objects are left out and noted.
    """
    broken: list[int] = []
    cut = False
    try:
        with open(path, "rb") as file:
            number = 0
            while content := file.readline(LONGEST_LINE):
                number += 1
                row = _object(content)
                if row is not None:
                    yield row
                elif content.strip():
                    cut = not content.endswith(b"\n") and len(content) < LONGEST_LINE
                    if not cut:
                        broken.append(number)
    except FileNotFoundError:
        return
    except OSError as error:
        notes.add(f"{path}: cannot be read ({one_line(error)})")
    if broken:
        count = "1 line is" if len(broken) == 1 else f"{len(broken):,} lines are"
        first = "" if len(broken) == 1 else "the first is "
        notes.add(f"{path}: {count} no JSON objects and left out ({first}line {broken[0]})")
    if cut:
        notes.add(f"{path}: the last line was cut short, as by a kill, and is left out")


def read_json(path: Path, notes: Notes) -> Any:
    """The content of a JSON file; None without one that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        notes.add(f"{path}: cannot be read ({one_line(error)})")
        return None


def read_object(path: Path, notes: Notes) -> dict[str, Any]:
    """The object that a JSON file holds; empty without one."""
    content = read_json(path, notes)
    if content is None:
        return {}
    if not isinstance(content, dict):
        notes.add(f"{path}: holds no object with keys and is left out")
        return {}
    return content


def read_config(path: Path, notes: Notes) -> dict[str, Any]:
    """A run's ``config.yaml``; empty without one that can be read."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.add(f"{path}: is missing, so that what the run was made of is not known")
        return {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        notes.add(f"{path}: cannot be read ({one_line(error)})")
        return {}
    if not isinstance(content, dict):
        notes.add(f"{path}: holds no keys and is left out")
        return {}
    return content


def part(content: Any, *keys: str) -> Any:
    """What lies at a place of nested mappings; None where there is nothing."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def number(value: Any) -> float:
    """A figure; NaN for whatever is none, null for one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def count(value: Any) -> int | None:
    """A whole number from 0; None for whatever is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
        return None
    return value


def short_path(value: object) -> str:
    """The last two parts of a sample's path: which one it is, not where it lay."""
    return "/".join(str(value).rstrip("/").split("/")[-2:])


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
