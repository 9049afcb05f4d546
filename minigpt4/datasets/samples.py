"""Samples: what sources read, still encoded, and the pictures and texts made of it."""

import io
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict

import torch
from PIL import Image, UnidentifiedImageError

from minigpt4.errors import DataError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")

ToPixels = Callable[[Image.Image], torch.Tensor]  # what an image processor does


@dataclass(frozen=True)
class RawSample:
    """An image still encoded, or the file that holds it, with its raw caption."""

    key: str
    image: bytes | Path
    text: str

    @property
    def origin(self) -> str:
        """Where the image lies: its file, or its key in a shard."""
        return str(self.image) if isinstance(self.image, Path) else self.key


@dataclass(frozen=True)
class BadSample:
    """A sample (or a shard, or the rest of one) that cannot be read.

    Attributes:
        key: Shard and key, or file.
        cause: One of a few kinds, by which bad samples are counted: "unreadable image" …
        detail: What is the matter with this one.
    """

    key: str
    cause: str
    detail: str = ""

    @property
    def reason(self) -> str:
        return f"{self.cause}: {self.detail}" if self.detail else self.cause


class Source(Protocol):
    """Where samples come from: parts that can each be read by themselves.

    Attributes:
        units: Number of parts, by which readers share the work: shards, or single pairs.
        window: Consecutive samples of a reader that are shuffled together.
    """

    units: int
    window: int

    def read(self, unit: int) -> Iterator[RawSample | BadSample]:
        """The samples of one part, always in the same order."""


@dataclass(frozen=True)
class DataSet:
    """A source with its processors; what a builder returns."""

    name: str
    source: Source
    image_processor: ToPixels
    text_processor: Callable[[str], str]
    sample_ratio: float = 1.0
    length: int | None = None  # samples, where that is known without reading them
    batch_size: int | None = None  # of this data set; the run's without
    eval_image_processor: ToPixels | None = None  # of an evaluation; the training's without
    missing: tuple[BadSample, ...] = ()  # what was named and is not there


class Sample(TypedDict):
    """One training pair: ``image`` ``[3, size, size]``."""

    key: str
    image: torch.Tensor
    text: str


class Batch(TypedDict):
    """Several pairs: ``image`` ``[B, 3, size, size]``."""

    keys: list[str]
    image: torch.Tensor
    text: list[str]


def read_sample(raw: RawSample | BadSample, dataset: DataSet, seed: str) -> Sample | BadSample:
    """A sample decoded and processed; ``seed`` decides what a random transform draws."""
    if isinstance(raw, BadSample):
        return raw
    text = dataset.text_processor(raw.text)
    if not text.strip():
        return BadSample(raw.key, "empty caption", f"{raw.text!r:.60}")
    try:
        image = load_image(raw.image)
    except DataError as error:
        return BadSample(raw.key, "unreadable image", str(error))
    # A random transform depends on the sample's own seed, not on what ran before it.
    with torch.random.fork_rng(devices=[]):
        # The CPU's generator alone: torch.manual_seed would take longer than the decoding.
        torch.default_generator.manual_seed(random.Random(seed).getrandbits(62))
        return Sample(key=raw.key, image=dataset.image_processor(image), text=text)


def load_image(image: bytes | str | Path) -> Image.Image:
    """An RGB image from encoded bytes or a file.

    Raises:
        DataError: when it is not an image that PIL can read to its end.
    """
    name = "the image" if isinstance(image, bytes) else str(image)
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return opened.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not a readable picture (unknown format)") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is not a readable picture ({error})") from error


def stack(samples: Sequence[Sample]) -> Batch:
    """Samples as a batch; at least one."""
    return Batch(
        keys=[sample["key"] for sample in samples],
        image=torch.stack([sample["image"] for sample in samples]),
        text=[sample["text"] for sample in samples],
    )
