"""Checks that a parameter's annotation can carry: each returns a complaint or ``None``.

They run over the whole config before anything is loaded (see ``registry.bind``).
"""

import math
import re
import tempfile
from pathlib import Path
from typing import Annotated


def is_placeholder(value: str) -> bool:
    """Whether a path is one of the original's placeholders, still to be filled in."""
    return re.search(r"(^|/)(path/to|your/path)(/|$)", value.lower()) is not None


def check_file(value: str) -> str | None:
    """Complaint about a file that should exist."""
    if not value:
        return None
    if is_placeholder(value):
        return f"{value!r} is a placeholder; put the path of your file there"
    path = Path(value)
    if path.is_dir():
        return f"{value} is a folder; name the file"
    return None if path.is_file() else f"no such file: {value}"


def check_file_or_url(value: str) -> str | None:
    """Complaint about a weights file that is neither on disk nor a URL."""
    return None if value.startswith(("http://", "https://")) else check_file(value)


def check_model_folder(value: str) -> str | None:
    """Complaint about a language model that is neither a folder nor a hub id ``name/model``."""
    if not value:
        return "missing; put the folder or hub id of your Vicuna or LLaMA there"
    if is_placeholder(value):
        return f"{value!r} is a placeholder; put the folder of your Vicuna or LLaMA there"
    path = Path(value)
    if path.is_dir():
        return None if (path / "config.json").is_file() else f"{value} holds no config.json"
    if path.exists():
        return f"{value} is a file; name the model's folder"
    parts = value.split("/")
    if len(parts) == 2 and all(parts) and parts[0] not in (".", ".."):
        return None  # a hub id; transformers fetches it
    return f"no such folder: {value}"


def check_writable_folder(value: str) -> str | None:
    """Complaint about an output folder that cannot be made or written."""
    if not value:
        return "empty; name the folder for your runs"
    if is_placeholder(value):
        return f"{value!r} is a placeholder; put the folder for your runs there"
    folder = Path(value).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        return f"{value}: {existing} is a file, not a folder"
    try:
        # Tried, not asked: root may write what a read-only disk will not take.
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return f"{value}: {existing} cannot be written ({error.strerror}); choose another folder"


def check_positive(value: float) -> str | None:
    return None if 0 < value < math.inf else f"{value} must be greater than 0"


def check_not_negative(value: float) -> str | None:
    return None if 0 <= value < math.inf else f"{value} must not be negative"


Positive = Annotated[int, check_positive]
NotNegative = Annotated[int, check_not_negative]
ExistingFile = Annotated[str, check_file]
FileOrUrl = Annotated[str, check_file_or_url]
ModelFolder = Annotated[str, check_model_folder]
OutputFolder = Annotated[str, check_writable_folder]
PositiveFloat = Annotated[float, check_positive]
