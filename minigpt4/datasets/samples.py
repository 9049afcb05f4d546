"""Streams: what a source reads, decoded and processed; endless to train, once in order to evaluate.

The stream of one reader is a function of (seed, data set, reader, number of readers) alone. A
reader is one worker process of one rank.
"""

import io
import itertools
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypedDict

import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import IterableDataset, get_worker_info

from minigpt4.errors import DataError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
# More unreadable samples than this in a row is a wrong data set, not a few broken files.
MAX_BAD_IN_A_ROW = 1000
_LOGGED_BAD_SAMPLES = 5  # per reader; later ones are only counted

ToPixels = Callable[[Image.Image], torch.Tensor]  # what an image processor does

logger = logging.getLogger(__name__)


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
    """A sample (or the rest of a shard) that cannot be read, and why."""

    key: str
    reason: str


class Source(Protocol):
    """Where samples come from: shards or a folder."""

    def read_pass(
        self, reader: int, readers: int, rng: random.Random
    ) -> Iterator[RawSample | BadSample]:
        """This reader's share, once, in an order that ``rng`` decides."""

    def read_in_order(self) -> Iterator[RawSample | BadSample]:
        """Everything, once, in the order of the files."""

    @property
    def units(self) -> int:
        """How many parts can be split over readers (shards, or samples)."""


@dataclass(frozen=True)
class DataSet:
    """A source with its processors; what a builder returns."""

    name: str
    source: Source
    image_processor: ToPixels
    text_processor: Callable[[str], str]
    sample_ratio: float = 1.0
    countable: bool = False  # whether the source's units are samples
    batch_size: int | None = None  # of this data set; the run's without
    eval_image_processor: ToPixels | None = None  # of an evaluation; the training's without


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


class SampleStream(IterableDataset[Sample | DataError]):
    """An endless stream of one data set for one rank.

    A fault ends it by *yielding* a ``DataError``: raised in a worker, it would reach the user as
    that worker's traceback.
    """

    def __init__(self, dataset: DataSet, seed: int, rank: int, world_size: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[Sample | DataError]:
        worker = get_worker_info()
        workers = worker.num_workers if worker else 1
        reader = self.rank * workers + (worker.id if worker else 0)
        identity = f"{self.seed}/{self.dataset.name}/{reader}"
        share = (reader, self.world_size * workers)
        position = bad = bad_in_a_row = 0
        for number in itertools.count():
            rng = random.Random(f"{identity}/{number}")
            good = 0
            for raw in self.dataset.source.read_pass(*share, rng):
                sample = read_sample(raw, self.dataset, f"{identity}@{position}")
                position += 1
                if not isinstance(sample, BadSample):
                    good += 1
                    bad_in_a_row = 0
                    yield sample
                    continue
                bad += 1
                bad_in_a_row += 1
                if bad <= _LOGGED_BAD_SAMPLES or bad % 1000 == 0:
                    text = "%s: skipped %s: %s (%d skipped so far by this reader)"
                    logger.warning(text, self.dataset.name, sample.key, sample.reason, bad)
                if bad_in_a_row > MAX_BAD_IN_A_ROW:
                    break
            if good > 0 and bad_in_a_row <= MAX_BAD_IN_A_ROW:
                continue
            if share == (0, 1):
                yield DataError(
                    f"datasets.{self.dataset.name}: no readable sample among the last "
                    f"{max(1, bad_in_a_row)} read; the warnings above name the first ones"
                )
                return
            # This reader's part may just be the broken one: it reads everything from now on.
            share, bad_in_a_row = (0, 1), 0


@dataclass(frozen=True)
class OrderedBatch:
    """Consecutive samples of a data set; those that can be read are a batch.

    Attributes:
        numbers: Place in the data set of each sample of the batch, counted from 0.
        batch: What can be read, keyed by origin; None where there is nothing.
        unreadable: Place in the data set → what cannot be read there.
    """

    numbers: list[int]
    batch: Batch | None
    unreadable: dict[int, BadSample]


class OrderedBatches(IterableDataset[OrderedBatch]):
    """Every sample of one data set once, in its own order, for one rank of an evaluation.

    Batch ``n`` is read by rank ``n % world_size`` and there by one worker, so that the batches, and
    with them the answers, are the same however many processes and workers share the work.
    """

    def __init__(
        self, dataset: DataSet, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        processor = dataset.eval_image_processor or dataset.image_processor
        self.dataset = replace(dataset, image_processor=processor)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[OrderedBatch]:
        worker = get_worker_info()
        workers, own = (worker.num_workers, worker.id) if worker else (1, 0)
        # A DataLoader takes its workers' batches in turn, so ranks differ first, then workers.
        reader = own * self.world_size + self.rank
        samples = enumerate(self.dataset.source.read_in_order())
        for number in itertools.count():
            # Still encoded: to skip the other readers' batches costs little.
            share = list(itertools.islice(samples, self.batch_size))
            if not share:
                return
            if number % (self.world_size * workers) == reader:
                yield self._read(share)

    def _read(self, share: Sequence[tuple[int, RawSample | BadSample]]) -> OrderedBatch:
        good: dict[int, Sample] = {}
        unreadable: dict[int, BadSample] = {}
        for number, raw in share:
            named = replace(raw, key=raw.origin) if isinstance(raw, RawSample) else raw
            sample = read_sample(named, self.dataset, f"{self.dataset.name}@{number}")
            if isinstance(sample, BadSample):
                unreadable[number] = sample
            else:
                good[number] = sample
        batch = stack(list(good.values())) if good else None
        return OrderedBatch(list(good), batch, unreadable)


def read_sample(raw: RawSample | BadSample, dataset: DataSet, seed: str) -> Sample | BadSample:
    """A sample decoded and processed; ``seed`` decides what a random transform draws."""
    if isinstance(raw, BadSample):
        return raw
    try:
        image = load_image(raw.image)
    except DataError as error:
        return BadSample(raw.key, str(error))
    # A random transform depends on the sample's own seed, not on what ran before it.
    with torch.random.fork_rng(devices=[]):
        # The CPU's generator alone: torch.manual_seed would take longer than the decoding.
        torch.default_generator.manual_seed(random.Random(seed).getrandbits(62))
        return Sample(
            key=raw.key,
            image=dataset.image_processor(image),
            text=dataset.text_processor(raw.text),
        )


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


def collate(samples: Sequence[Sample | DataError]) -> Batch | DataError:
    """A batch, or the first fault among its samples."""
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        good.append(sample)
    return stack(good)


def stack(samples: Sequence[Sample]) -> Batch:
    """Samples as a batch; at least one."""
    return Batch(
        keys=[sample["key"] for sample in samples],
        image=torch.stack([sample["image"] for sample in samples]),
        text=[sample["text"] for sample in samples],
    )
