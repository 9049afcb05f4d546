"""Samples: what sources read, still encoded, and the images and texts made of it."""

import functools
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, runtime_checkable

import numpy
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator
from PIL import Image

from minigpt4.datasets.features import CachedFeatures
from minigpt4.datasets.images import HugeImageError, load_fast, load_image
from minigpt4.errors import DataError, one_line

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_NUMBERS = numpy.random.MT19937()  # numpy's generator while a sample is processed

ToPixels = Callable[[Image.Image], torch.Tensor]  # what an image processor does
Normalise = Callable[[torch.Tensor], torch.Tensor]  # bytes [..., 3, s, s] → what a model sees


class Turn(NamedTuple):
    """A message of a conversation, with an ``<ImageHere>`` where an image is shown."""

    speaker: Literal["system", "user", "assistant"]
    text: str


Turns = tuple[Turn, ...]  # from the system or the user to an assistant's answer
Text = str | Turns  # a caption, or a conversation
Facts = Mapping[str, Any]  # for evaluations: see evaluation_facts


@runtime_checkable
class SplitProcessor(Protocol):
    """An image processor in two halves; its whole is ``normalise(pixels(image))``.

    Attributes:
        normalise: The device's half, bytes ``[..., 3, size, size]`` → fp32, the same on any device;
            None for a processor that must not be split.
        image_backend: ``torchvision`` also takes a JPEG as bytes ``[3, H, W]``.
    """

    @property
    def normalise(self) -> Normalise | None: ...

    @property
    def image_backend(self) -> str: ...

    def pixels(self, image: Image.Image | torch.Tensor) -> torch.Tensor:
        """Return the workers' half, uint8 ``[3, size, size]``."""


EncodedImage = bytes | Path | CachedFeatures


@dataclass(frozen=True)
class RawSample:
    """Images with a raw caption, or with a conversation about them.

    Attributes:
        key: Name in the data set; in a shard, after the shard's path.
        image: One, or several in the order of the text's marks; a conversation may have none.
        text: Caption, or turns with an ``<ImageHere>`` for each image.
        shard: Path of its shard, if any.
        facts: Facts for an evaluation; a training does not use them.
    """

    key: str
    image: EncodedImage | tuple[EncodedImage, ...]
    text: Text
    shard: str = ""
    facts: Facts = field(default_factory=dict, hash=False)

    @property
    def images(self) -> tuple[EncodedImage, ...]:
        return self.image if isinstance(self.image, tuple) else (self.image,)

    @property
    def origin(self) -> str:
        """Return the file of its only image, else its key."""
        return str(self.image) if isinstance(self.image, Path) else self.key


@dataclass(frozen=True)
class BadSample:
    """A sample (or a shard, or the rest of one) that cannot be read.

    Attributes:
        key: Shard and key, or file.
        cause: Kind, by which bad samples are counted: "no image", "unreadable image",
            "huge image", "no json", "unreadable json", "no caption", "empty caption",
            "unreadable caption", "duplicate file", "broken shard", "empty shard", "missing shard",
            "unreadable features", "unreadable row", "broken conversation", "image outside".
        detail: What is wrong with this one.
        shard: Path of its shard, or of the shard that it is.
    """

    key: str
    cause: str
    detail: str = ""
    shard: str = ""

    @property
    def reason(self) -> str:
        return f"{self.cause}: {self.detail}" if self.detail else self.cause

    def row(self, dataset: str = "") -> dict[str, str]:
        """Return the fields of a line in ``bad_samples.jsonl`` that are not empty."""
        fields = {"dataset": dataset, "shard": self.shard, "key": key_in_shard(self)}
        fields |= {"cause": self.cause, "detail": self.detail}
        return {name: text for name, text in fields.items() if text}


def key_in_shard(sample: RawSample | BadSample) -> str:
    """Return a key without its shard; a shard that is bad as a whole has none."""
    if not sample.shard:
        return sample.key
    return f"{sample.key}/".removeprefix(f"{sample.shard}/")[:-1]


class Source(Protocol):
    """Where samples come from: units (shards, or single pairs) that readers share.

    Attributes:
        units: Number of units.
        window: Number of consecutive samples of a reader that are shuffled together.
    """

    units: int
    window: int

    def read(self, unit: int) -> Iterator[RawSample | BadSample]:
        """Yield the samples of one unit, always in the same order."""


@dataclass(frozen=True)
class Side:
    """The rows that are read, by their first images: all, or one side of a split.

    Attributes:
        part: Side of the split.
        val_fraction: Fraction of the images that is on the side ``val``.
    """

    part: Literal["all", "train", "val"] = "all"
    val_fraction: float = 0.0

    def has(self, place: float) -> bool:
        """Return whether a row is read, by what :func:`place_of` returns for its image."""
        return self.part == "all" or (place < self.val_fraction) == (self.part == "val")


ALL = Side()


def place_of(identity: str) -> float:
    """Return a number from 0 to 1 that is always the same for an image's name, or a row's."""
    digest = hashlib.blake2b(identity.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


@dataclass(frozen=True)
class DataSet:
    """A source with its processors; what a builder returns."""

    name: str
    source: Source
    image_processor: ToPixels
    text_processor: Callable[[str], str]
    sample_ratio: float = 1.0
    length: int | None = None  # good samples, if known without reading them
    batch_size: int | None = None  # instead of the run's
    eval_image_processor: ToPixels | None = None  # instead of the training's
    eval_source: Source | None = None  # instead of the training's
    missing: tuple[BadSample, ...] = ()  # shards that are named and do not exist

    @functools.cached_property  # isinstance of a protocol is slow
    def split_processor(self) -> SplitProcessor | None:
        processor = self.image_processor
        return processor if isinstance(processor, SplitProcessor) and processor.normalise else None


class Sample(TypedDict):
    """One training row: ``image`` ``[n, 3, size, size]``, or cached features ``[n, Q, D]``.

    Pixels are bytes where the device normalises them, else fp32. Without images it is empty.
    """

    key: str
    image: torch.Tensor
    text: Text
    facts: Facts


class _BatchFacts(TypedDict, total=False):
    facts: list[Facts]  # of each row


class Batch(_BatchFacts):
    """Several rows: ``image`` ``[N, 3, size, size]`` or ``[N, Q, D]``, of all rows in order.

    Without any image it is empty.
    """

    keys: list[str]
    image: torch.Tensor
    image_counts: list[int]  # of each row
    text: list[Text]
    normalise: Normalise | None  # what to_device still has to do with bytes


def read_sample(raw: RawSample | BadSample, dataset: DataSet, seed: str) -> Sample | BadSample:
    """Return the sample decoded and processed; random transforms depend on ``seed``."""
    if isinstance(raw, BadSample):
        return raw
    with _seeded(seed):
        text, facts = raw.text, raw.facts
        if isinstance(text, str):  # a conversation's words are not processed
            text = dataset.text_processor(text)
            if "references" in facts:
                processed = [dataset.text_processor(each) for each in facts["references"]]
                facts = {**facts, "references": processed}
        if fault := text_fault(text):
            return BadSample(raw.key, *fault, raw.shard)
        try:
            images = [_read_image(image, dataset) for image in raw.images]
        except DataError as error:
            cause = "huge image" if isinstance(error, HugeImageError) else "unreadable image"
            if any(isinstance(image, CachedFeatures) for image in raw.images):
                cause = "unreadable features"
            return BadSample(raw.key, cause, str(error), raw.shard)
    image = torch.stack(images) if images else torch.empty(0)
    return Sample(key=raw.key, image=image, text=text, facts=facts)


def reference(text: Text) -> str:
    """Return what an evaluation compares with: a caption, or a conversation's last answer."""
    return text if isinstance(text, str) else text[-1].text


def text_fault(text: Text) -> tuple[str, str] | None:
    """Return cause and detail of a text without targets, or with half a character."""
    turns = (Turn("assistant", text),) if isinstance(text, str) else text
    targets = [turn.text for turn in turns if turn.speaker == "assistant"]
    if not all(words.strip() for words in targets):
        return "empty caption", f"{targets[0]!r:.60}"
    try:
        "".join(turn.text for turn in turns).encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, as json can hold
        return "unreadable caption", one_line(error)
    return None


def _read_image(image: EncodedImage, dataset: DataSet) -> torch.Tensor:
    """Return pixels ``[3, size, size]``, or cached features ``[Q, D]``."""
    if isinstance(image, CachedFeatures):
        return image.load()
    split = dataset.split_processor
    if split is None:
        return dataset.image_processor(load_image(image))
    return split.pixels((load_fast if split.image_backend == "torchvision" else load_image)(image))


@contextmanager
def _seeded(seed: str) -> Iterator[None]:
    """Seed the random numbers of Python, numpy and torch, and put them back afterwards."""
    # Copying numpy's whole state takes as long as an image's pixels: another takes its place.
    before = random.getstate(), get_bit_generator()
    number = random.Random(seed).getrandbits(62)
    random.seed(number)
    set_bit_generator(_NUMBERS)
    numpy.random.seed(number % 2**32)
    try:
        with torch.random.fork_rng(devices=[]):
            # The CPU's generator only: torch.manual_seed takes longer than the decoding.
            torch.default_generator.manual_seed(number)
            yield
    finally:
        random.setstate(before[0])
        set_bit_generator(before[1])


def printable(name: str) -> str:
    """Return a name from a data set fit for a line of a log."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def stack(samples: Sequence[Sample], dataset: DataSet) -> Batch:
    """Return samples of a data set, at least one, as a batch."""
    images = [sample["image"] for sample in samples if len(sample["image"])]
    image = torch.cat(images) if images else torch.empty(0)
    # Cached features are not the processor's bytes.
    split = dataset.split_processor if image.dtype == torch.uint8 else None
    return Batch(
        keys=[sample["key"] for sample in samples],
        image=image,
        image_counts=[len(sample["image"]) for sample in samples],
        text=[sample["text"] for sample in samples],
        normalise=split.normalise if split else None,
        facts=[sample["facts"] for sample in samples],
    )


def keys_of_images(batch: Batch) -> list[str]:
    """Return the key of the row of each image of a batch."""
    owners = zip(batch["keys"], batch["image_counts"], strict=True)
    return [key for key, count in owners for _ in range(count)]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its images on the device, and normalised there."""
    image = batch["image"].to(device, non_blocking=True)
    normalise = batch.get("normalise")  # a plug-in's batch may lack it
    image = normalise(image) if normalise else image
    return Batch(**{**batch, "image": image, "normalise": None})  # type: ignore[typeddict-item]
