"""Webdataset shards: tar files of images and json captions, as img2dataset writes them."""

import glob
import itertools
import json
import logging
import math
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import braceexpand
from webdataset.tariterators import group_by_keys

from minigpt4.config.checks import Positive, is_placeholder
from minigpt4.datasets.options import (
    DataSetOptions,
    Storage,
    TextProcessors,
    build_dataset,
    training_processor,
)
from minigpt4.datasets.samples import (
    ALL,
    IMAGE_SUFFIXES,
    BadSample,
    DataSet,
    RawSample,
    Side,
    place_of,
    printable,
)
from minigpt4.errors import one_line, shown
from minigpt4.registry import BUILDERS, Hidden, Section

# Makes a sample of its key, the fields of its json, its images and its shard.
ToSample = Callable[[str, Mapping[str, Any], tuple[bytes, ...], str], RawSample | BadSample]
# Bytes; a longer image or json is bad: a window holds a thousand of them.
LARGEST_FILE = 256 << 20
MOST_SHARDS = 1_000_000
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_LACKING = ("no image", "no json")  # causes of a sample that may have been cut in two
_MAX_NAME = 4096  # of a path

logger = logging.getLogger(__name__)


def list_shards(storage: str | list[str]) -> list[str]:
    """Return every tar that braces (``{00000..01255}.tar``), globs or folders name."""
    patterns = [storage] if isinstance(storage, str) else storage
    shards: list[str] = []
    for name in itertools.chain.from_iterable(map(braceexpand.braceexpand, patterns)):
        if os.path.isdir(name):
            shards += sorted(str(file) for file in Path(name).glob("*.tar"))
        elif glob.has_magic(name):
            shards += sorted(glob.glob(name))
        else:
            shards.append(name)
    return shards


def existing_shards(storage: str | list[str]) -> list[str]:
    """Return those shards of :func:`list_shards` that are files."""
    return [shard for shard in list_shards(storage) if os.path.isfile(shard)]


def _spans(pattern: str) -> float:
    """Return the number of names that the ranges of a pattern make, at most."""
    ranges = _RANGE.findall(pattern)
    if any(len(number) > 18 for bounds in ranges for number in bounds):
        return math.inf
    return math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges)


def check_shards(storage: str | list[str]) -> str | None:
    """Return a complaint about a ``storage`` that names no shard on disk."""
    for pattern in [storage] if isinstance(storage, str) else storage:
        if is_placeholder(pattern):
            return f"{pattern!r} is a placeholder; put the path of your shards there"
        if _spans(pattern) > MOST_SHARDS:
            return f"{shown(pattern)} names more than {MOST_SHARDS:,} shards"
    try:
        shards = list_shards(storage)
    except ValueError:  # braceexpand's own error for unbalanced braces
        return f"{storage!r} has unbalanced braces"
    if not shards:
        return f"{storage!r} names no shard (.tar)"
    if not any(map(os.path.isfile, shards)):
        return f"none of the {len(shards)} shards exists; the first is {shards[0]}"
    return None


@dataclass(eq=False)
class ShardSource:
    """Shards, each a unit; their samples are shuffled in windows while still encoded.

    Attributes:
        shards: Tar files.
        window: Number of consecutive samples that are shuffled together.
        to_sample: Function that makes a sample of a json's fields and any number of images;
            without it a sample is one image and the json's ``caption``.
        side: Side of a split; a sample's is decided by its key.
    """

    shards: list[str]
    window: int
    to_sample: ToSample | None = None
    side: Side = ALL

    units_per_group = 1

    def __post_init__(self) -> None:
        self.units = len(self.shards)

    def files(self, unit: int) -> list[Path]:
        return [Path(self.shards[unit])]

    def read(self, unit: int) -> Iterator[RawSample | BadSample]:
        for sample in self._read(self.shards[unit]):
            if self.side is ALL or self.side.has(place_of(sample.key.rpartition("/")[2])):
                yield sample

    def _read(self, shard: str) -> Iterator[RawSample | BadSample]:
        faults: list[BadSample] = []
        twice: list[Exception] = []

        def note(error: Exception) -> bool:
            twice.append(error)
            return True

        empty = True
        for fields in group_by_keys(_files(shard, faults), keys=_split_name, handler=note):
            sample = self._parse(shard, fields)
            empty = False
            # The sample in which a shard breaks off lost its other half with the rest.
            if not (faults and isinstance(sample, BadSample) and sample.cause in _LACKING):
                yield sample
            if twice:
                # As in webdataset, the first file of a name counts.
                text = "the first one of a name is taken"
                yield BadSample(sample.key, "duplicate file", text, shard)
                twice.clear()
        if empty and not faults:
            yield BadSample(shard, "empty shard", shard=shard)
        yield from faults

    def _parse(self, shard: str, fields: dict[str, Any]) -> RawSample | BadSample:
        """Return the files of one key as a sample; images may be named ``0.jpg``, ``1.jpg`` …."""
        key = f"{shard}/{printable(fields['__key__'])}"
        suffixes = [suffix for suffix in IMAGE_SUFFIXES if suffix in fields][:1]
        if self.to_sample and not suffixes:
            suffixes = _numbered(fields)
        images = tuple(fields[suffix] for suffix in suffixes)
        if not images and not self.to_sample:
            return BadSample(key, "no image", f"none of {', '.join(IMAGE_SUFFIXES)}", shard)
        if "json" not in fields and None not in images:
            return BadSample(key, "no json", shard=shard)
        if None in (*images, fields.get("json", b"")):
            cause = "huge image" if None in images else "unreadable json"
            return BadSample(key, cause, f"more than {LARGEST_FILE:,} bytes", shard)
        try:
            told = json.loads(fields["json"])
        except (ValueError, RecursionError, MemoryError) as error:
            return BadSample(key, "unreadable json", one_line(error), shard)
        found = told if isinstance(told, dict) else {}
        if self.to_sample:
            return self.to_sample(key, found, images, shard)
        caption = found.get("caption")
        if not isinstance(caption, str):
            return BadSample(key, "no caption", f"{shown(caption)} is not a text", shard)
        return RawSample(key, images[0], caption, shard)


def _files(shard: str, faults: list[BadSample]) -> Iterator[dict[str, Any]]:
    """Yield the files of a shard as webdataset groups them; an early end is added to ``faults``.

    webdataset's own reading takes a tar that is cut between two files for a whole one.
    """
    try:
        with tarfile.open(shard) as tar:
            end = -1
            while entry := tar.next():
                tar.members = []  # type: ignore[attr-defined]  # or it remembers all
                if tar.offset <= end or len(entry.name) > _MAX_NAME:
                    raise tarfile.ReadError("a header of impossible sizes")
                end = tar.offset
                if entry.isreg() and not entry.issparse():
                    yield {"fname": entry.name, "data": _content(tar, entry), "__url__": shard}
            _check_end(tar)
    except FileNotFoundError:
        faults.append(BadSample(shard, "missing shard", shard=shard))
    except Exception as error:  # on broken bytes tarfile and its unpackers raise any kind
        cause, text = "broken shard", f"the rest of it is lost ({one_line(error)})"
        if os.path.isfile(shard) and not os.path.getsize(shard):
            cause, text = "empty shard", "0 bytes"
        faults.append(BadSample(shard, cause, text, shard))


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes | None:
    """Return the content of a file that a sample needs; None if it is too long."""
    if _split_name(entry.name)[1].lower().rpartition(".")[2] not in (*IMAGE_SUFFIXES, "json"):
        return b""
    if entry.size > LARGEST_FILE:
        return None
    file = tar.extractfile(entry)
    return file.read() if file else b""


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise for a tar whose last header is not followed by its end, which tarfile accepts."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing: it was cut, or is damaged")
    if tar.fileobj.read(2 * tarfile.RECORDSIZE).strip(tarfile.NUL):
        raise tarfile.ReadError("more lies behind its end: several tars in one?")


def _split_name(name: str) -> tuple[str | None, str]:
    """Return key and suffix as webdataset, whose pattern can take hours for a long name."""
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")  # the first dot
    return (folder + slash + stem, suffix) if stem and dot else (None, "")


def _numbered(fields: Mapping[str, Any]) -> list[str]:
    """Return the suffixes of a sample's several images, ``0.jpg`` before ``10.jpg``."""
    found = [re.fullmatch(r"(\d{1,9})\.(\w+)", name) for name in fields]
    images = [match for match in found if match and match[2] in IMAGE_SUFFIXES]
    return [match[0] for match in sorted(images, key=lambda match: int(match[1]))]


@dataclass(frozen=True, kw_only=True)
class ShardStorage(Storage):
    """Storage of shards: a pattern with braces, a folder, or a list of these.

    Attributes:
        storage: What a training reads.
        val_storage: Validation set: shards that a validation or an evaluation reads.
        val_fraction: Or the fraction of the samples that is the validation set, chosen by their
            keys. A validation then goes through all shards for it.
    """

    storage: Annotated[str | list[str], check_shards]
    val_storage: Annotated[str | list[str], check_shards] | None = None


@dataclass(frozen=True, kw_only=True)
class CaptionShardOptions(DataSetOptions):
    """Options of image-caption pairs in shards.

    Attributes:
        build_info: Where the shards lie.
        text_processor: Caption processor of each split.
        buffer_size: Consecutive samples of each reader that are shuffled together.
        data_type: As in the original; only images exist.
    """

    build_info: ShardStorage
    text_processor: TextProcessors = field(
        default_factory=partial(training_processor, "blip_caption")
    )
    buffer_size: Positive = 1000
    data_type: Literal["images"] = "images"

    @property
    def is_endless(self) -> bool:
        return True

    def open(self, storage: str | list[str], side: Side = ALL) -> ShardSource:
        return ShardSource(existing_shards(storage), self.buffer_size, side=side)

    def open_first(self, storage: str | list[str]) -> tuple[str, ShardSource]:
        shard = next(filter(os.path.isfile, list_shards(storage)))
        return shard, ShardSource([shard], 1)


@BUILDERS.register("laion")
@BUILDERS.register("cc_sbu")
def build_caption_shards(
    name: Annotated[str, Hidden], options: Annotated[CaptionShardOptions, Section]
) -> DataSet:
    """Build image-caption pairs in webdataset shards (stage 1)."""
    captions = options.text_processor["train"].build()
    return build_dataset(name, options, captions, missing_shards(name, options.stored.storage))


def missing_shards(name: str, storage: str | list[str]) -> tuple[BadSample, ...]:
    """Return the shards that are named and do not exist; report them in one line."""
    shards = list_shards(storage)
    missing = [shard for shard in shards if not os.path.isfile(shard)]
    if missing:
        text = "datasets.%s: %d of %d shards are missing (first: %s)"
        logger.warning(text, name, len(missing), len(shards), missing[0])
    return tuple(BadSample(shard, "missing shard", shard=shard) for shard in missing)
