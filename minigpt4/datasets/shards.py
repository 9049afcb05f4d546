"""Webdataset shards: tar files of pictures and json captions, as img2dataset writes them."""

import glob
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import braceexpand
from webdataset.tariterators import tarfile_samples

from minigpt4.checks import is_placeholder
from minigpt4.datasets.samples import IMAGE_SUFFIXES, BadSample, RawSample


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
    """Shards split over readers, read through a shuffle buffer of still encoded samples."""

    def __init__(self, shards: list[str], buffer_size: int) -> None:
        self.shards = shards
        self.buffer_size = buffer_size

    @property
    def units(self) -> int:
        return len(self.shards)

    def read_pass(
        self, reader: int, readers: int, rng: random.Random
    ) -> Iterator[RawSample | BadSample]:
        # With fewer shards than readers all readers read all shards, each in an order of its own.
        own = self.shards[reader::readers] if len(self.shards) >= readers else list(self.shards)
        rng.shuffle(own)
        buffer: list[RawSample | BadSample] = []
        for sample in self._read(own):
            if len(buffer) < self.buffer_size:
                buffer.append(sample)
                continue
            slot = rng.randrange(self.buffer_size)
            buffer[slot], sample = sample, buffer[slot]
            yield sample
        rng.shuffle(buffer)
        yield from buffer

    def read_in_order(self) -> Iterator[RawSample | BadSample]:
        return self._read(self.shards)

    def _read(self, shards: list[str]) -> Iterator[RawSample | BadSample]:
        for shard in shards:
            broken: list[BadSample] = []

            def note(
                error: Exception, broken: list[BadSample] = broken, shard: str = shard
            ) -> bool:
                broken.append(BadSample(shard, f"the rest of the shard is lost ({error})"))
                return True

            empty = True
            for fields in tarfile_samples(iter([{"url": shard}]), handler=note):
                empty = False
                yield _parse(fields)
            if empty and not broken:
                broken.append(BadSample(shard, "no sample in it"))
            yield from broken


def _parse(fields: dict[str, Any]) -> RawSample | BadSample:
    """A tar's fields of one key as a sample: ``jpg|jpeg|png|webp`` and ``json["caption"]``."""
    key = f"{fields.get('__url__', '')}/{fields.get('__key__', '')}"
    image = next((fields[suffix] for suffix in IMAGE_SUFFIXES if suffix in fields), None)
    if image is None:
        return BadSample(key, f"no image ({', '.join(IMAGE_SUFFIXES)})")
    try:
        caption = json.loads(fields["json"])["caption"]
    except (KeyError, ValueError, TypeError) as error:
        return BadSample(key, f"no json with a caption ({type(error).__name__}: {error})")
    if not isinstance(caption, str):
        return BadSample(key, f"the caption is {caption!r}, not a text")
    return RawSample(key, image, caption)
