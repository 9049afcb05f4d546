"""Reporting: errors of a config, one line each with file and dotted key."""

from collections.abc import Sequence
from pathlib import Path

from minigpt4.errors import ConfigError
from minigpt4.registry import Fault

_MAX_KEY, _MAX_TEXT = 200, 1000


def raise_faults(path: Path, faults: Sequence[Fault]) -> None:
    """Raise all errors, one a line.

    Raises:
        ConfigError: when there are any.
    """
    lines = dict.fromkeys(_line(path, fault) for fault in faults)
    if lines:
        raise ConfigError("\n".join(lines))


def _line(path: Path, fault: Fault) -> str:
    line = f"{_printable(fault.key, _MAX_KEY)}: {_printable(fault.text, _MAX_TEXT)}"
    # What the command line said is in no file.
    return line if fault.key.startswith("--") else f"{path}: {line}"


def _printable(text: str, longest: int) -> str:
    """One line whatever keys and values hold: line breaks, escapes, half a surrogate pair."""
    shortened = text if len(text) <= longest else text[:longest] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shortened)
