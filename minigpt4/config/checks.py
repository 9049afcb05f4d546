"""Checks that a parameter's annotation can carry: each returns an error message or ``None``.

They run over the whole config before anything is loaded (see ``registry.bind``). ``os.path``,
unlike ``Path``, takes names that no file can have.
"""

import contextlib
import math
import os
import re
import tempfile
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

MOST = 1_000_000  # of the dimensions of a model
MAX_LAYERS = 1000  # of a part of a model; a mistyped number would be built for hours
_HUB_ID = re.compile(r"(?!\.)[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


def is_placeholder(value: str) -> bool:
    """Return whether a path is one of the original's placeholders, still to be filled in."""
    return re.search(r"(^|/)(path/to|your/path)(/|$)", value.lower()) is not None


def check_file(value: str) -> str | None:
    if not value or (os.path.isfile(value) and not is_placeholder(value)):
        return None
    if is_placeholder(value):
        return f"{value!r} is a placeholder; put the path of your file there"
    is_folder = os.path.isdir(value)
    return f"{value} is a folder; name the file" if is_folder else f"no such file: {value}"


def check_file_or_url(value: str) -> str | None:
    is_url = value.startswith(("http://", "https://"))
    return _check_url(value) if is_url else check_file(value)


def _check_url(value: str) -> str | None:
    try:
        address = urllib.parse.urlsplit(value)
        named = address.hostname and Path(address.path).name
    except ValueError:  # brackets in it that hold no IPv6 address
        named = None
    return None if named else f"{value} is not the address of a file"


def check_model_folder(value: str) -> str | None:
    """Check the folder of a language model, or a hub id ``name/model``."""
    has_config = bool(value) and os.path.isfile(os.path.join(value, "config.json"))
    return None if has_config and not is_placeholder(value) else _check_hub_id(value)


def _check_hub_id(value: str) -> str | None:
    if not value:
        return "missing; put the folder or hub id of your Vicuna or LLaMA there"
    if is_placeholder(value):
        return f"{value!r} is a placeholder; put the folder of your Vicuna or LLaMA there"
    if os.path.isdir(value):
        return f"{value} holds no config.json"
    if os.path.exists(value):
        return f"{value} is a file; name the model's folder"
    if _HUB_ID.fullmatch(value):
        return None  # transformers fetches it
    return f"no such folder: {value}"


def check_writable_folder(value: str) -> str | None:
    if not value:
        return "empty; name the folder for your runs"
    if is_placeholder(value):
        return f"{value!r} is a placeholder; put the folder for your runs there"
    existing = nearest_existing(value)
    if not existing.is_dir():
        return f"{value}: {existing} is a file, not a folder"
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(value)  # names that no folder can have: too long, or with a null byte
        # Permissions do not tell: root may write to a read-only disk.
        with tempfile.TemporaryFile(dir=existing):
            return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return f"{value}: {existing} cannot be written ({reason}); choose another folder"


def nearest_existing(folder: str) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    path = Path(folder).absolute()
    return next(parent for parent in (path, *path.parents) if os.path.exists(parent))


def check_folder(value: str) -> str | None:
    if is_placeholder(value):
        return f"{value!r} is a placeholder; put the path of your folder there"
    return None if os.path.isdir(value) else f"no such folder: {value}"


def _check_number(is_valid: Callable[[float], bool], rule: str) -> Callable[[float], str | None]:
    return lambda value: None if is_valid(value) else f"{value} must {rule}"


check_positive = _check_number(lambda n: 0 < n < math.inf, "be greater than 0")
check_not_negative = _check_number(lambda n: 0 <= n < math.inf, "not be negative")
check_share = _check_number(lambda n: 0 <= n < 1, "be at least 0 and less than 1")
check_fraction = _check_number(lambda n: 0 <= n <= 1, "lie between 0 and 1")
check_ratio = _check_number(lambda n: 0 < n <= 1000, "be greater than 0 and at most 1,000")
check_dimension = _check_number(lambda n: 0 < n <= MOST, f"be from 1 to {MOST:,}")
check_layers = _check_number(lambda n: 0 < n <= MAX_LAYERS, f"be from 1 to {MAX_LAYERS:,}")

Dimension = Annotated[int, check_dimension]
Layers = Annotated[int, check_layers]
Positive = Annotated[int, check_positive]
NotNegative = Annotated[int, check_not_negative]
ExistingFile = Annotated[str, check_file]
FileOrUrl = Annotated[str, check_file_or_url]
ModelFolder = Annotated[str, check_model_folder]
OutputFolder = Annotated[str, check_writable_folder]
PositiveFloat = Annotated[float, check_positive]
