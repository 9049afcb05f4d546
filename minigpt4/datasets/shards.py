"""Webdataset shards: tar files of pictures and json captions, as img2dataset writes them."""

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import braceexpand
from webdataset.tariterators import tarfile_samples

from minigpt4.checks import is_placeholder
from minigpt4.datasets.samples import IMAGE_SUFFIXES, BadSample, RawSample
from minigpt4.errors import one_line


def list_shards(storage: str | list[str]) -> list[str]:
    """Every tar a ``storage`` names: braces (``{00000..01255}.tar``), globs, folders."""
    shards: list[str] = []
    for pattern in [storage] if isinstance(storage, str) else storage:
        for name in braceexpand.braceexpand(pattern):
            if Path(name).is_dir():
                shards += sorted(str(file) for file in Path(name).glob("*.tar"))
            elif glob.has_magic(name):
                shards += sorted(glob.glob(name))
            else:
                shards.append(name)
    return shards


def check_shards(storage: str | list[str]) -> str | None:
    """Complaint about a ``storage`` that names no shard on disk."""
    for pattern in [storage] if isinstance(storage, str) else storage:
        if is_placeholder(pattern):
            return f"{pattern!r} is a placeholder; put the path of your shards there"
    try:
        shards = list_shards(storage)
    except ValueError:  # braceexpand's own error for unbalanced braces
        return f"{storage!r} has unbalanced braces"
    if not shards:
        return f"{storage!r} names no shard (.tar)"
    if not any(Path(shard).is_file() for shard in shards):
        return f"none of the {len(shards)} shards exists; the first is {shards[0]}"
    return None


class ShardSource:
    """Shards, each a unit; their samples are shuffled in windows while still encoded."""

    def __init__(self, shards: list[str], window: int) -> None:
        self.shards = shards
        self.units = len(shards)
        self.window = window

    def read(self, unit: int) -> Iterator[RawSample | BadSample]:
        shard = self.shards[unit]
        broken: list[Exception] = []

        def note(error: Exception) -> bool:
            broken.append(error)
            return True

        empty = True
        for fields in tarfile_samples(iter([{"url": shard}]), handler=note):
            empty = False
            yield _parse(fields)
        if broken:
            yield BadSample(shard, "broken shard", f"the rest of it is lost ({broken[0]})")
        elif empty:
            yield BadSample(shard, "empty shard")


def _parse(fields: dict[str, Any]) -> RawSample | BadSample:
    """A tar's fields of one key as a sample: ``jpg|jpeg|png|webp`` and ``json["caption"]``."""
    key = f"{fields.get('__url__', '')}/{fields.get('__key__', '')}"
    image = next((fields[suffix] for suffix in IMAGE_SUFFIXES if suffix in fields), None)
    if image is None:
        return BadSample(key, "no image", f"none of {', '.join(IMAGE_SUFFIXES)}")
    if "json" not in fields:
        return BadSample(key, "no json")
    try:
        told = json.loads(fields["json"])
    except (ValueError, RecursionError) as error:
        return BadSample(key, "unreadable json", one_line(error))
    caption = told.get("caption") if isinstance(told, dict) else None
    if not isinstance(caption, str):
        return BadSample(key, "no caption", f"{caption!r:.60} is not a text")
    return RawSample(key, image, caption)
