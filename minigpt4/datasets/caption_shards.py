"""Webdataset shards: tar files of pictures and json captions, as img2dataset writes them."""

import glob
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

from minigpt4.config.checks import Positive, check_share, is_placeholder
from minigpt4.datasets.options import (
    DataSetOptions,
    TextProcessors,
    build_dataset,
    split_sources,
    training_processor,
)
from minigpt4.datasets.samples import (
    IMAGE_SUFFIXES,
    BadSample,
    DataSet,
    RawSample,
    Text,
    printable,
)
from minigpt4.datasets.splits import ALL, Side, place_of
from minigpt4.errors import one_line, shown
from minigpt4.registry import BUILDERS, Hidden, Section

TextOf = Callable[[Mapping[str, Any], int], Text]
# Bytes; a longer picture or json is bad: a window holds a thousand of them.
LARGEST_FILE = 256 << 20
MOST_SHARDS = 1_000_000
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_LACKING = ("no image", "no json")  # causes of a sample that may have been cut in two
_MAX_NAME = 4096  # of a path

logger = logging.getLogger(__name__)


def list_shards(storage: str | list[str]) -> list[str]:
    """Every tar a ``storage`` names: braces (``{00000..01255}.tar``), globs, folders."""
    shards: list[str] = []
    for pattern in [storage] if isinstance(storage, str) else storage:
        for name in braceexpand.braceexpand(pattern):
            if os.path.isdir(name):
                shards += sorted(str(file) for file in Path(name).glob("*.tar"))
            elif glob.has_magic(name):
                shards += sorted(glob.glob(name))
            else:
                shards.append(name)
    return shards


def _spans(pattern: str) -> float:
    """How many names the ranges of a pattern make, at most."""
    ranges = _RANGE.findall(pattern)
    if any(len(number) > 18 for bounds in ranges for number in bounds):
        return math.inf
    return math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges)


def check_shards(storage: str | list[str]) -> str | None:
    """Complaint about a ``storage`` that names no shard on disk."""
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
        window: Consecutive samples that are shuffled together.
        text_of: Makes the text of a json's fields and its number of images, or raises a
            ``RowError``; without it that is the caption, and a sample has one image.
        side: Of a split; samples are on it by their keys.
    """

    shards: list[str]
    window: int
    text_of: TextOf | None = None
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
        files = _Files(shard)
        twice: list[Exception] = []

        def note(error: Exception) -> bool:
            twice.append(error)
            return True

        empty = True
        for fields in group_by_keys(files, keys=_split_name, handler=note):
            sample = _parse(shard, fields, self.text_of)
            empty = False
            # The sample in which a shard breaks off lost its other half with the rest.
            if not (files.fault and isinstance(sample, BadSample) and sample.cause in _LACKING):
                yield sample
            if twice:
                # As in webdataset, the first file of a name counts.
                text = "the first one of a name is taken"
                yield BadSample(sample.key, "duplicate file", text, shard)
                twice.clear()
        if files.fault:
            yield files.fault
        elif empty:
            yield BadSample(shard, "empty shard", shard=shard)


class _Files:
    """The files of a shard in the form that webdataset groups into samples; never raises.

    Differs from webdataset's own reading: that takes a tar which is cut between two files, or in
    a header, for a whole one.

    Attributes:
        fault: What ended the reading before the tar's end.
    """

    def __init__(self, shard: str) -> None:
        self.shard = shard
        self.fault: BadSample | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            with tarfile.open(self.shard) as tar:
                end = -1
                while entry := tar.next():
                    tar.members = []  # type: ignore[attr-defined]  # or it remembers all
                    if tar.offset <= end or len(entry.name) > _MAX_NAME:
                        raise tarfile.ReadError("a header of impossible sizes")
                    end = tar.offset
                    if entry.isreg() and not entry.issparse():
                        content = self._read(tar, entry)
                        yield {"fname": entry.name, "data": content, "__url__": self.shard}
                _check_end(tar)
        except FileNotFoundError:
            self.fault = BadSample(self.shard, "missing shard", shard=self.shard)
        except Exception as error:  # on broken bytes tarfile and its unpackers raise any kind
            self.fault = self._broken(error)

    def _read(self, tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes | None:
        """The content of a file that a sample needs; None where it is too long."""
        if _split_name(entry.name)[1].lower().rpartition(".")[2] not in (*IMAGE_SUFFIXES, "json"):
            return b""
        if entry.size > LARGEST_FILE:
            return None
        file = tar.extractfile(entry)
        return file.read() if file else b""

    def _broken(self, error: Exception) -> BadSample:
        if Path(self.shard).is_file() and not Path(self.shard).stat().st_size:
            return BadSample(self.shard, "empty shard", "0 bytes", self.shard)
        text = f"the rest of it is lost ({one_line(error)})"
        return BadSample(self.shard, "broken shard", text, self.shard)


def _check_end(tar: tarfile.TarFile) -> None:
    """Refuse a tar whose last header was not followed by its end: tarfile takes any for one."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing: it was cut, or is damaged")
    if tar.fileobj.read(2 * tarfile.RECORDSIZE).strip(tarfile.NUL):
        raise tarfile.ReadError("more lies behind its end: several tars in one?")


def _split_name(name: str) -> tuple[str | None, str]:
    """Key and suffix, split at the first dot behind the folders; no key for another name.

    Source: webdataset's ``base_plus_ext``, whose pattern can take hours over a long name.
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return (folder + slash + stem, suffix) if stem and dot else (None, "")


def _parse(shard: str, fields: dict[str, Any], text_of: TextOf | None) -> RawSample | BadSample:
    """A tar's fields of one key as a sample: ``jpg|jpeg|png|webp`` and ``json["caption"]``.

    With ``text_of`` there may be none or several images (``0.jpg``, ``1.jpg``), in that order.
    """
    key = f"{shard}/{printable(fields['__key__'])}"
    suffixes = [suffix for suffix in IMAGE_SUFFIXES if suffix in fields][:1]
    if text_of and not suffixes:
        suffixes = _numbered(fields)
    images = tuple(fields[suffix] for suffix in suffixes)
    if None in (*images, fields.get("json")) or not (images or text_of):
        return BadSample(key, *_lacking_file(fields, images, text_of is None), shard)
    try:
        told = json.loads(fields["json"])
    except (ValueError, RecursionError, MemoryError) as error:
        return BadSample(key, "unreadable json", one_line(error), shard)
    if text_of:
        return _parse_row(key, shard, told, images, text_of)
    caption = told.get("caption") if isinstance(told, dict) else None
    if not isinstance(caption, str):
        return BadSample(key, "no caption", f"{shown(caption)} is not a text", shard)
    return RawSample(key, images[0], caption, shard)


def _lacking_file(
    fields: Mapping[str, Any], images: tuple[bytes | None, ...], needs_image: bool
) -> tuple[str, str]:
    """Return cause and detail of a sample that lacks a file, or has one that is too long."""
    too_long = f"more than {LARGEST_FILE:,} bytes"
    if not images and needs_image:
        return "no image", f"none of {', '.join(IMAGE_SUFFIXES)}"
    if None in images:
        return "huge image", too_long
    return ("unreadable json", too_long) if "json" in fields else ("no json", "")


def _parse_row(
    key: str, shard: str, told: Any, images: tuple[bytes, ...], text_of: TextOf
) -> RawSample | BadSample:
    from minigpt4.datasets.own_rows.row_texts import RowError, evaluation_facts

    try:
        text = text_of(told if isinstance(told, dict) else {}, len(images))
    except RowError as error:
        return BadSample(key, error.cause, error.detail, shard)
    return RawSample(key, images, text, shard, evaluation_facts(told))


def _numbered(fields: Mapping[str, Any]) -> list[str]:
    """The suffixes of a sample's several images, ``0.jpg`` before ``10.jpg``."""
    found = [re.fullmatch(r"(\d{1,9})\.(\w+)", name) for name in fields]
    images = [match for match in found if match and match[2] in IMAGE_SUFFIXES]
    return [match[0] for match in sorted(images, key=lambda match: int(match[1]))]


@dataclass(frozen=True)
class ShardStorage:
    """Where shards lie: a pattern with braces, a folder, or a list of these.

    Attributes:
        storage: What a training reads.
        val_storage: Validation set: shards that a validation or an evaluation reads.
        val_fraction: Or the fraction of the samples that is the validation set, chosen by their
            keys. A validation then goes through all shards for it.
    """

    storage: Annotated[str | list[str], check_shards]
    val_storage: Annotated[str | list[str], check_shards] | None = None
    val_fraction: Annotated[float, check_share] = 0.0


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
    def stored(self) -> ShardStorage:
        return self.build_info

    @property
    def is_endless(self) -> bool:
        return True

    def open_first(self, storage: str | list[str]) -> tuple[str, ShardSource]:
        shard = next(filter(os.path.isfile, list_shards(storage)))
        return shard, ShardSource([shard], 1)


@BUILDERS.register("laion")
@BUILDERS.register("cc_sbu")
def build_caption_shards(
    name: Annotated[str, Hidden], options: Annotated[CaptionShardOptions, Section]
) -> DataSet:
    """Build image-caption pairs in webdataset shards (stage 1)."""

    def read(storage: str | list[str], side: Side) -> ShardSource:
        existing = [shard for shard in list_shards(storage) if Path(shard).is_file()]
        return ShardSource(existing, options.buffer_size, side=side)

    source, held_out = split_sources(name, options.stored, read)
    captions = options.text_processor["train"].build()
    missing = missing_shards(name, options.stored.storage)
    return build_dataset(name, options, source, captions, held_out, missing=missing)


def missing_shards(name: str, storage: str | list[str]) -> tuple[BadSample, ...]:
    """Return the shards that are named and do not exist; report them in one line."""
    shards = list_shards(storage)
    missing = [shard for shard in shards if not Path(shard).is_file()]
    if missing:
        text = "datasets.%s: %d of %d shards are missing (first: %s)"
        logger.warning(text, name, len(missing), len(shards), missing[0])
    return tuple(BadSample(shard, "missing shard", shard=shard) for shard in missing)
