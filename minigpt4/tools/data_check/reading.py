"""Reading: every sample of a data set once, its images looked at, in little memory."""

import itertools
import os
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy

from minigpt4.datasets.features import CachedFeatures
from minigpt4.datasets.images import HugeImageError, load_image
from minigpt4.datasets.samples import BadSample, EncodedImage, RawSample, text_fault
from minigpt4.datasets.splits import place_of
from minigpt4.errors import DataError

Looks = Literal["decode", "exist", "skip"]
_AT_ONCE = 256  # samples whose images are looked at together
_IN_TURN = 4  # of them by the same thread: handing one over takes longer than to see that it exists

Found = tuple[RawSample | BadSample, str | None]  # a sample, and its own id


@dataclass(frozen=True)
class Rows:
    """A data set, or a file, to be read once.

    Attributes:
        name: As it is told.
        read: Its samples, from the first one on each time.
        caption: What a training makes of a caption.
    """

    name: str
    read: Callable[[], Iterator[Found]]
    caption: Callable[[str], str] = str


def looked_at(rows: Rows, looks: Looks) -> Iterator[RawSample | BadSample]:
    """Every sample in order; those that a training would skip as bad ones.

    Behind them the rows whose id an earlier one has.
    """
    numbers = array("d")
    samples = _with_words(rows, numbers)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while share := list(itertools.islice(samples, _AT_ONCE)):
            parts = (share[at : at + _IN_TURN] for at in range(0, len(share), _IN_TURN))
            for part in pool.map(lambda part: [_looked_at(s, looks) for s in part], parts):
                yield from part
    yield from _repeated(rows, numbers)


def _with_words(rows: Rows, numbers: "array[float]") -> Iterator[RawSample | BadSample]:
    """Samples whose texts are held; of each id its number is noted."""
    for sample, identity in rows.read():
        if identity is not None:
            numbers.append(place_of(identity))
        if isinstance(sample, RawSample):
            text = rows.caption(sample.text) if isinstance(sample.text, str) else sample.text
            if fault := text_fault(text):
                yield BadSample(sample.key, *fault, sample.shard)
                continue
        yield sample


def _looked_at(sample: RawSample | BadSample, looks: Looks) -> RawSample | BadSample:
    if isinstance(sample, BadSample) or looks == "skip":
        return sample
    for image in sample.images:
        try:
            _look(image, looks)
        except DataError as error:
            cause = "huge image" if isinstance(error, HugeImageError) else "unreadable image"
            cause = "missing image" if _is_missing(image) else cause
            return BadSample(sample.key, cause, str(error), sample.shard)
    return sample


def _look(image: EncodedImage, looks: Looks) -> None:
    if looks == "decode" and not isinstance(image, CachedFeatures):
        load_image(image)
    elif _is_missing(image):
        raise DataError(f"{image!s}: no such file")


def _is_missing(image: EncodedImage) -> bool:
    return isinstance(image, Path) and not os.path.isfile(image)


def _repeated(rows: Rows, numbers: "array[float]") -> Iterator[BadSample]:
    """Rows with the id of an earlier one; read once more only where there are any."""
    ordered = numpy.frombuffer(numbers) if numbers else numpy.empty(0)
    ordered.sort()  # in place: there may be millions
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not twice:
        return
    first: dict[str, str] = {}
    for sample, identity in rows.read():
        if isinstance(sample, BadSample):
            continue  # told already
        if identity is not None and place_of(identity) in twice:
            before = first.setdefault(identity, sample.key)
            if before != sample.key:
                text = f"{identity!r:.60} is the id of {before}, too"
                yield BadSample(sample.key, "duplicate id", text)
