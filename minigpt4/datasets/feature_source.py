"""A data set whose images are replaced by their cached features, in the same order.

``<folder>/<data set>/`` holds for each *group* of the source's units ``00000.json`` (its samples in
order, the bad ones too) and ``00000-000.safetensors``, …; ``features.json``, which is written last,
lists all groups.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from minigpt4.datasets.features import CachedFeatures
from minigpt4.datasets.samples import (
    BadSample,
    DataSet,
    RawSample,
    Side,
    Source,
    Turn,
    key_in_shard,
)
from minigpt4.errors import DataError, one_line
from minigpt4.files import write_atomically

INDEX = "features.json"
ADVICE = "run the same cache-features command again"

Row = dict[str, Any]  # a sample of a group: key, and text, features; or cause, detail


@runtime_checkable
class CacheableSource(Source, Protocol):
    """A source whose features can be cached.

    Attributes:
        units_per_group: Number of consecutive units whose features are computed and kept together.
        side: Side of a split that it reads.
    """

    units_per_group: int
    side: Side

    def files(self, unit: int) -> list[Path]:
        """Return the files that a unit is read from; a shard comes first."""


@dataclass(frozen=True)
class Group:
    """The json of a group; with it the group is complete.

    Attributes:
        identity: What the features depend on; see ``preflight/feature_identity.py``.
        files: Files that the group was read from, as that module describes them.
        counts: Number of samples of each unit.
        rows: All samples, in order.
        features: Name and bytes of the files of features.
    """

    identity: dict[str, Any]
    files: list[list[Any]]
    counts: list[int]
    rows: list[Row]
    features: dict[str, int]


@dataclass(frozen=True)
class Index:
    """The content of ``features.json``; with it the cache is complete.

    Attributes:
        identity: That of all groups.
        groups: For each its ``files``, the ``written`` ones (file → bytes), its number of
            ``samples`` and of ``bad`` ones.
    """

    identity: dict[str, Any]
    groups: list[dict[str, Any]]


_Form = TypeVar("_Form", Group, Index)


def save_json(content: Group | Index, file: Path) -> None:
    """Write a group's json or the index, whole or not at all."""
    text = json.dumps(vars(content), separators=(",", ":"))
    write_atomically(file, lambda opened: opened.write(text.encode()))


def load_json(form: type[_Form], file: Path) -> _Form:
    """Read a group's json or the index; a ``DataError`` if it is damaged."""
    try:
        return form(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{file}: damaged ({one_line(error, 100)}); {ADVICE}") from error


def group_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.json"


def group_count(source: CacheableSource) -> int:
    return -(-source.units // source.units_per_group)


def units_of(source: CacheableSource, group: int) -> range:
    first = group * source.units_per_group
    return range(first, min(first + source.units_per_group, source.units))


def files_of(source: CacheableSource, group: int) -> list[Path]:
    """Return the files that a group is read from, each once."""
    files = (file for unit in units_of(source, group) for file in source.files(unit))
    return list(dict.fromkeys(files))


def load_index(folder: Path, groups: int) -> Index:
    """Read the index of a cache of so many groups; a ``DataError`` if it is not complete."""
    if not (folder / INDEX).is_file():
        done = sum(group_file(folder, number).is_file() for number in range(groups))
        if done:
            raise DataError(f"{folder}: {groups - done} of {groups} groups are missing; {ADVICE}")
        raise DataError(f"{folder}: not a feature cache, or not complete (no {INDEX} in it)")
    return load_json(Index, folder / INDEX)


def groups_difference(index: Index, source: CacheableSource) -> str | None:
    """Return a complaint about a cache of another number of groups."""
    found, wanted = len(index.groups), group_count(source)
    if found == wanted:
        return None
    return f"made of {found} groups of files, this data set has {wanted}"


def row_of(sample: RawSample | BadSample) -> Row:
    """Return a sample as a group's json keeps it, without the shard's path, which may change."""
    row: Row = {"key": key_in_shard(sample), "in_shard": bool(sample.shard)}
    if isinstance(sample, BadSample):
        return row | {"cause": sample.cause, "detail": sample.detail}
    return row | {"text": sample.text}


def _sample_of(row: Row, shard: str, folder: Path) -> RawSample | BadSample:
    """Return the sample of a row of :func:`row_of`, with features instead of the images."""
    shard = shard if row["in_shard"] else ""
    key = "/".join(part for part in (shard, row["key"]) if part)
    if "cause" in row:
        return BadSample(key, row["cause"], row["detail"], shard)
    images = tuple(CachedFeatures(folder / file, place) for file, place in row["features"])
    text = row["text"]
    if not isinstance(text, str):
        text = tuple(Turn(*turn) for turn in text)
    return RawSample(key, images[0] if len(images) == 1 else images, text, shard)


class FeatureSource:
    """The samples of another source, with features instead of images.

    Args:
        source: Source of which the features were made; only its order is used.
        folder: Folder of this data set's cache, complete and of the same data set, else a
            ``DataError``.
    """

    def __init__(self, source: CacheableSource, folder: Path) -> None:
        self.units, self.window = source.units, source.window
        self._source, self._folder = source, folder
        self._groups: dict[int, Group] = {}
        index = load_index(folder, group_count(source))
        if difference := groups_difference(index, source):
            raise DataError(f"{folder}: {difference}")

    def read(self, unit: int) -> Iterator[RawSample | BadSample]:
        number, place = divmod(unit, self._source.units_per_group)
        shard = next((str(file) for file in self._source.files(unit)), "")
        try:
            group = self._group(number)
        except DataError as error:
            file = group_file(self._folder, number)
            yield BadSample(str(file), "unreadable features", str(error))
            return
        first = sum(group.counts[:place])
        for row in islice(group.rows, first, first + group.counts[place]):
            yield _sample_of(row, shard, self._folder)

    def _group(self, number: int) -> Group:
        if number not in self._groups:
            # Single pairs come from all over the data set: all groups stay in memory.
            if self._source.units_per_group == 1:
                self._groups.clear()
            self._groups[number] = load_json(Group, group_file(self._folder, number))
        return self._groups[number]


def uncacheable(dataset: DataSet) -> str:
    kind = type(dataset.source).__name__
    return f"features of a {kind} cannot be cached: it has no units_per_group, side and files(unit)"
