"""Samples: every one of a data set once, its text and images checked, in little memory."""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Literal

from minigpt4.datasets.features import CachedFeatures
from minigpt4.datasets.images import HugeImageError, load_image
from minigpt4.datasets.samples import BadSample, EncodedImage, RawSample, place_of, text_fault
from minigpt4.errors import DataError

Looks = Literal["decode", "exist", "skip"]
_AT_ONCE = 256  # samples that are checked together
_IN_TURN = 4  # of them by the same thread: handing one over takes longer than a look at its file

Found = tuple[RawSample | BadSample, str | None]  # a sample, and its own id


@dataclass(frozen=True)
class Rows:
    """A data set, or a file, to be read once."""

    name: str
    read: Callable[[], Iterator[Found]]
    caption: Callable[[str], str] = str  # text processor of a training


def check_rows(rows: Rows, looks: Looks) -> Iterator[RawSample | BadSample]:
    """Yield every sample in order; those that a training would skip as bad samples.

    A sample with the id of an earlier one is followed by a bad sample that says so.
    """
    check = partial(check_sample, caption=rows.caption, looks=looks)
    found = _with_repeated(rows)
    with ThreadPool() as pool:
        while share := list(itertools.islice(found, _AT_ONCE)):
            yield from pool.map(check, share, _IN_TURN)


def _with_repeated(rows: Rows) -> Iterator[RawSample | BadSample]:
    seen: set[float] = set()  # hashes, which take less memory than ids
    for sample, identity in rows.read():
        yield sample
        if identity is not None and isinstance(sample, RawSample):
            place = place_of(identity)
            if place in seen:
                text = f"{identity!r:.60} is the id of an earlier row, too"
                yield BadSample(sample.key, "duplicate id", text)
            seen.add(place)


def check_sample(
    sample: RawSample | BadSample, caption: Callable[[str], str], looks: Looks
) -> RawSample | BadSample:
    """Return the sample, or a bad one if a training would skip it for its text or an image."""
    if isinstance(sample, BadSample):
        return sample
    text = caption(sample.text) if isinstance(sample.text, str) else sample.text
    if fault := text_fault(text):
        return BadSample(sample.key, *fault, sample.shard)
    for image in sample.images if looks != "skip" else ():
        try:
            if looks == "decode" and not isinstance(image, CachedFeatures):
                load_image(image)
            elif _is_missing(image):
                raise DataError(f"{image!s}: no such file")
        except DataError as error:
            cause = "huge image" if isinstance(error, HugeImageError) else "unreadable image"
            cause = "missing image" if _is_missing(image) else cause
            return BadSample(sample.key, cause, str(error), sample.shard)
    return sample


def _is_missing(image: EncodedImage) -> bool:
    return isinstance(image, Path) and not os.path.isfile(image)
