"""Samples: what sources read, still encoded, and the pictures and texts made of it."""

import functools
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
_NUMBERS = numpy.random.MT19937()  # numpy's while a sample draws

ToPixels = Callable[[Image.Image], torch.Tensor]  # what an image processor does
Normalise = Callable[[torch.Tensor], torch.Tensor]  # bytes [..., 3, s, s] → what a model sees


class Turn(NamedTuple):
    """What one says in a conversation; an ``<ImageHere>`` stands where an image is shown."""

    speaker: Literal["system", "user", "assistant"]
    text: str


Turns = tuple[Turn, ...]  # from the system or the user to an assistant's answer, in turns
Text = str | Turns  # a caption, or a conversation
Facts = Mapping[str, Any]  # what an evaluation alone looks at: see evaluation_facts


@runtime_checkable
class SplitProcessor(Protocol):
    """An image processor in two halves: the workers', which gives bytes, and the device's.

    Called as a whole it is ``normalise(pixels(image))``.

    Attributes:
        normalise: Bytes ``[..., 3, size, size]`` → fp32, the same on any device; it travels with
            the batch from worker to trainer. None where there are no halves.
        image_backend: ``torchvision`` takes a JPEG as bytes ``[3, H, W]``, too.
    """

    @property
    def normalise(self) -> Normalise | None: ...

    @property
    def image_backend(self) -> str: ...

    def pixels(self, image: Image.Image | torch.Tensor) -> torch.Tensor:
        """uint8 ``[3, size, size]``."""


EncodedImage = bytes | Path | CachedFeatures  # still encoded, the file that holds it, its features


@dataclass(frozen=True)
class RawSample:
    """Images with a raw caption, or with a conversation about them.

    Attributes:
        key: With the shard before it, where it lies in one.
        image: One, or several in the order of the text's marks; a conversation may have none.
        text: Caption, or turns with an ``<ImageHere>`` for each image.
        shard: That it lies in.
        facts: For an evaluation; a training has no use for them.
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
        """Where its one image lies, its file or its key in a shard; else its key."""
        return str(self.image) if isinstance(self.image, Path) else self.key


@dataclass(frozen=True)
class BadSample:
    """A sample (or a shard, or the rest of one) that cannot be read.

    Attributes:
        key: Shard and key, or file.
        cause: One of a few kinds, by which bad samples are counted: "no image", "unreadable image",
            "huge image", "no json", "unreadable json", "no caption", "empty caption",
            "unreadable caption", "duplicate file", "broken shard", "empty shard", "missing shard",
            "unreadable features", "unreadable row", "broken conversation", "image outside".
        detail: What is the matter with this one.
        shard: That it lies in, or that it is.
    """

    key: str
    cause: str
    detail: str = ""
    shard: str = ""

    @property
    def reason(self) -> str:
        return f"{self.cause}: {self.detail}" if self.detail else self.cause

    def row(self, dataset: str = "") -> dict[str, str]:
        """The fields of a line in ``bad_samples.jsonl``; empty ones are left out."""
        # A key stands behind its shard; a shard that is bad as a whole has none.
        key = f"{self.key}/".removeprefix(f"{self.shard}/")[:-1] if self.shard else self.key
        fields = {"dataset": dataset, "shard": self.shard, "key": key}
        fields |= {"cause": self.cause, "detail": self.detail}
        return {name: text for name, text in fields.items() if text}


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
    eval_source: Source | None = None  # likewise
    missing: tuple[BadSample, ...] = ()  # what was named and is not there

    @functools.cached_property  # a protocol's isinstance takes its time
    def split_processor(self) -> SplitProcessor | None:
        """The image processor, if workers are to make bytes only."""
        processor = self.image_processor
        return processor if isinstance(processor, SplitProcessor) and processor.normalise else None


class _SampleFacts(TypedDict, total=False):
    facts: Facts


class _BatchFacts(TypedDict, total=False):
    facts: list[Facts]  # of each row


class Sample(_SampleFacts):
    """One training row: ``image`` ``[n, 3, size, size]``, or cached features ``[n, Q, D]``.

    Pixels are bytes where they are normalised by the batch, else fp32. Without images it is empty.
    """

    key: str
    image: torch.Tensor
    text: Text


class Batch(_BatchFacts):
    """Several rows: ``image`` ``[N, 3, size, size]`` or ``[N, Q, D]``, of all rows in order.

    Without any image it is empty.
    """

    keys: list[str]
    image: torch.Tensor
    image_counts: list[int]  # of each row
    text: list[Text]
    normalise: Normalise | None  # of bytes, still to be done: see to_device


def read_sample(raw: RawSample | BadSample, dataset: DataSet, seed: str) -> Sample | BadSample:
    """A sample decoded and processed; ``seed`` decides what a random transform draws."""
    if isinstance(raw, BadSample):
        return raw
    with _drawing_from(seed):
        # Words of a conversation are somebody's own: only captions are processed.
        text, facts = raw.text, raw.facts
        if isinstance(text, str):
            text = dataset.text_processor(text)
            if "references" in facts:
                facts = _processed_references(facts, dataset)
        if fault := text_fault(text):
            return BadSample(raw.key, *fault, raw.shard)
        try:
            images = [_read_image(image, dataset) for image in raw.images]
        except DataError as error:
            return BadSample(raw.key, _cause(raw, error), str(error), raw.shard)
    image = torch.stack(images) if images else torch.empty(0)
    return Sample(key=raw.key, image=image, text=text, facts=facts)


def _processed_references(facts: Facts, dataset: DataSet) -> Facts:
    """Process the references as captions are, with which they are compared."""
    return {**facts, "references": [dataset.text_processor(r) for r in facts["references"]]}


def _cause(raw: RawSample, error: DataError) -> str:
    if any(isinstance(image, CachedFeatures) for image in raw.images):
        return "unreadable features"
    return "huge image" if isinstance(error, HugeImageError) else "unreadable image"


def reference(text: Text) -> str:
    """What an evaluation compares with: a caption, or the last answer of a conversation."""
    return text if isinstance(text, str) else text[-1].text


def text_fault(text: Text) -> tuple[str, str] | None:
    """Cause and detail where a text has no word to learn, or none that can be written."""
    learnt = [text] if isinstance(text, str) else [t.text for t in text if t.speaker == "assistant"]
    if not all(words.strip() for words in learnt):
        return "empty caption", f"{learnt[0]!r:.60}"
    try:
        "".join([text] if isinstance(text, str) else [turn.text for turn in text]).encode()
    except UnicodeEncodeError as error:  # half a character, as json can hold
        return "unreadable caption", one_line(error)
    return None


def _read_image(image: EncodedImage, dataset: DataSet) -> torch.Tensor:
    """Pixels ``[3, size, size]``, or cached features ``[Q, D]``."""
    if isinstance(image, CachedFeatures):
        return image.load()
    split = dataset.split_processor
    load = load_fast if split and split.image_backend == "torchvision" else load_image
    picture = load(image)
    if split:
        return split.pixels(picture)
    assert isinstance(picture, Image.Image)
    return dataset.image_processor(picture)


@contextmanager
def _drawing_from(seed: str) -> Iterator[None]:
    """Random numbers of the sample's own, whatever ran before it and whatever draws them."""
    # numpy's whole state takes as long to copy as a picture's pixels: another one takes its place.
    before = random.getstate(), get_bit_generator()
    number = random.Random(seed).getrandbits(62)
    random.seed(number)
    set_bit_generator(_NUMBERS)
    numpy.random.seed(number % 2**32)
    try:
        with torch.random.fork_rng(devices=[]):
            # The CPU's generator alone: torch.manual_seed would take longer than the decoding.
            torch.default_generator.manual_seed(number)
            yield
    finally:
        random.setstate(before[0])
        set_bit_generator(before[1])


def printable(name: str) -> str:
    """A name from a data set, which may hold anything, fit for a line of a log."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def stack(samples: Sequence[Sample], dataset: DataSet) -> Batch:
    """Samples of a data set as a batch; at least one."""
    counts = [len(sample["image"]) for sample in samples]
    images = [sample["image"] for sample in samples if len(sample["image"])]
    image = torch.cat(images) if images else torch.empty(0)
    # Cached features are none of the processor's bytes.
    split = dataset.split_processor if image.dtype == torch.uint8 else None
    return Batch(
        keys=[sample["key"] for sample in samples],
        image=image,
        image_counts=counts,
        text=[sample["text"] for sample in samples],
        normalise=split.normalise if split else None,
        facts=[sample.get("facts", {}) for sample in samples],
    )


def keys_of_images(batch: Batch) -> list[str]:
    """Whose each image of a batch is."""
    owners = zip(batch["keys"], batch["image_counts"], strict=True)
    return [key for key, count in owners for _ in range(count)]


def pin_memory(batch: Batch) -> Batch:
    """The same with its images in page-locked memory."""
    return Batch(**{**batch, "image": batch["image"].pin_memory()})  # type: ignore[typeddict-item]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch as the model takes it: its images on the device, and normalised there."""
    image = batch["image"].to(device, non_blocking=True)
    normalise = batch.get("normalise")  # which a batch of a plug-in's own may lack
    image = normalise(image) if normalise else image
    return Batch(**{**batch, "image": image, "normalise": None})  # type: ignore[typeddict-item]
