"""Pictures of a folder and the captions of a list as webdataset shards, which stage 1 reads.

What img2dataset does with links, for pictures that are here already: ``00000.tar`` and so on, each
with a ``00000_stats.json`` that says it is whole and what is missing in it.
"""

import contextlib
import io
import json
import math
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from dataset.folders import read_json
from minigpt4.errors import one_line, shown
from minigpt4.files import write_atomically, write_json
from minigpt4.row_files import Row, RowFile

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # what the loaders read
LARGEST = 256 << 20  # bytes of a picture; the loaders take no longer one
Placed = tuple[str, Row]  # a row and where it stands
Sample = tuple[str, str, bytes, dict[str, str]]  # key, picture with its suffix, what is told of it


def place_of(rows: RowFile, row: Row, number: int) -> str:
    """Where a row stands; the published lists have all their rows in one line."""
    return f"{rows.path}:{row.line} (row {number:,})"


class BadRowError(Exception):
    """A row that makes no pair: its kind, and a detail."""


def pack_shards(
    lists: Sequence[RowFile], images: Path, output: Path, shard_size: int
) -> Iterator[dict[str, Any]]:
    """What each shard holds, in order; shards that are there already are not packed again.

    A shard is a fixed stretch of the rows, whichever pictures are there: going on after a kill
    makes the same shards.

    Raises:
        MiniGPT4Error: when the disk is full.
    """
    rows = chain.from_iterable(
        ((place_of(rows, row, number), row) for number, row in enumerate(rows, start=1))
        for rows in lists
    )
    digits = max(1, math.ceil(math.log10(shard_size)))
    number = 0
    while stretch := list(islice(rows, shard_size)):
        stats = output / f"{number:05d}_stats.json"
        if not stats.exists() or is_mended(read_json(stats), stretch, images):
            keys = (f"{number:05d}{index:0{digits}d}" for index in range(shard_size))
            write_json(stats, pack_shard(output / f"{number:05d}.tar", stretch, keys, images))
        yield read_json(stats)
        number += 1


def is_mended(packed: dict[str, Any], rows: Sequence[Placed], images: Path) -> bool:
    """Whether a shard's missing pictures have come since it was packed."""
    missing = {told["place"] for told in packed["bad"]}
    for place, row in rows:
        if place in missing:
            with contextlib.suppress(BadRowError):
                pair_of(row, images)
                return True
    return False


def pack_shard(
    tar: Path, rows: Sequence[Placed], keys: Iterable[str], images: Path
) -> dict[str, Any]:
    """What a shard holds that is written here; without any pair there is no file."""
    bad: list[dict[str, str]] = []

    def samples() -> Iterator[Sample]:
        for key, (place, row) in zip(keys, rows, strict=False):
            try:
                yield key, *pair_of(row, images)
            except BadRowError as error:
                kind, detail = error.args
                bad.append({"place": place, "kind": kind, "detail": detail})

    write_shard(tar, samples())
    if len(bad) == len(rows):
        tar.unlink()  # a shard without samples is a fault to a training
    return {"count": len(rows), "successes": len(rows) - len(bad), "bad": bad}


def write_shard(path: Path, samples: Iterable[Sample]) -> None:
    """Write a shard, whole or not at all."""

    def write(file: BinaryIO) -> None:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for key, suffix, picture, told in samples:
                _add(tar, f"{key}{suffix}", picture)
                _add(tar, f"{key}.json", json.dumps({**told, "key": key}).encode())

    write_atomically(path, write)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def pair_of(row: Row, images: Path) -> tuple[str, bytes, dict[str, str]]:
    """Suffix and content of a row's picture, and the json beside it.

    Raises:
        BadRowError: where it has none.
    """
    if row.fault:
        raise BadRowError("unreadable row", row.fault)
    caption, name = caption_of(row.fields), row.fields.get("image")
    if not isinstance(caption, str) or not caption.strip():
        raise BadRowError("no caption", shown(caption))
    if not isinstance(name, str) or not name:
        raise BadRowError("no image", shown(name))
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise BadRowError("path that leaves --images", shown(name))
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise BadRowError("picture of another type", shown(name))
    return suffix, picture(images / path, name), {"caption": caption, "image": name}


def picture(file: Path, name: str) -> bytes:
    try:
        if not file.is_file():
            raise BadRowError("missing picture", shown(name))
        if file.stat().st_size > LARGEST:
            raise BadRowError("huge picture", shown(name))
        content = file.read_bytes()
    except OSError as error:
        raise BadRowError("unreadable picture", f"{shown(name)}: {one_line(error)}") from error
    if not content:
        raise BadRowError("empty picture", shown(name))
    return content


def caption_of(fields: dict[str, Any]) -> object:
    """What the model is to say of the picture: LLaVA's first answer, or BLIP's caption."""
    turns = fields.get("conversations")
    if not isinstance(turns, list):
        return fields.get("blip_caption")
    said = (
        turn.get("value") for turn in turns if isinstance(turn, dict) and turn.get("from") == "gpt"
    )
    return next(said, None)
