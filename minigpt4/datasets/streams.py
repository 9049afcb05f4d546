"""Streams: samples of one data set in batches; endless to train, once in order to evaluate.

The stream of one reader is a function of (seed, data set, reader, number of readers) alone, and a
position says where in it a reader stands: a stream that starts at a position gives what an
uninterrupted one gives from there on. A reader is one worker process of one rank.
"""

import itertools
import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch.utils.data import IterableDataset, get_worker_info

from minigpt4.datasets.samples import (
    BadSample,
    Batch,
    DataSet,
    RawSample,
    Sample,
    pin_memory,
    read_sample,
    stack,
)
from minigpt4.errors import DataError

RECENT = 1000  # samples over which the share of bad ones is held against its limit
_LOGGED_BAD_SAMPLES = 5  # per reader; later ones are only counted

logger = logging.getLogger(__name__)


@dataclass
class StreamPosition:
    """Where a reader stands in its endless stream.

    Attributes:
        number: Passes over the reader's share that are complete.
        place: Within the pass, the unit in which the current window begins …
        index: … and the sample of that unit.
        taken: Samples of the window that are read.
        good: Good samples of this pass.
        everything: Its own share was too bad: it reads the whole data set.
        recent: One bit for each of the last samples, the newest lowest; set where it was bad.
        seen: How many bits of it count.
    """

    number: int = 0
    place: int = 0
    index: int = 0
    taken: int = 0
    good: int = 0
    everything: bool = False
    recent: int = 0
    seen: int = 0

    def note(self, bad: bool) -> None:
        self.good += not bad
        self.recent = (self.recent << 1 | bad) & ((1 << RECENT) - 1)
        self.seen = min(self.seen + 1, RECENT)

    def bad_share(self) -> float:
        """Of the last samples, at most ``RECENT``, how many were bad."""
        return self.recent.bit_count() / max(self.seen, 1)

    def next_pass(self, everything: bool) -> None:
        self.number += 1
        self.place = self.index = self.taken = self.good = 0
        if everything:
            self.everything, self.recent, self.seen = True, 0, 0


@dataclass(frozen=True)
class WorkerBatch:
    """What a reader hands over.

    Attributes:
        batch: Complete; None with a fault.
        bad: Samples skipped on the way to it.
        position: Where the reader stands after it.
        fault: Ends the stream; raised in a worker, it would reach the user as a traceback.
    """

    batch: Batch | None
    bad: list[BadSample]
    position: StreamPosition
    fault: DataError | None = None

    def pin_memory(self) -> "WorkerBatch":
        """Called by the DataLoader, which cannot look into a class."""
        if self.batch is None:
            return self
        return replace(self, batch=pin_memory(self.batch))


def worker_place() -> tuple[int, int]:
    """Return how many workers a DataLoader has, and which of them this process is."""
    worker = get_worker_info()
    return (worker.num_workers, worker.id) if worker else (1, 0)


@dataclass(eq=False)
class SampleStream(IterableDataset[WorkerBatch]):
    """An endless stream of one data set's batches for one rank.

    Attributes:
        dataset: What to read.
        batch_size: Samples of a batch.
        seed: Of the run.
        rank: This process.
        world_size: Number of processes.
        max_bad_fraction: Of the last ``RECENT`` samples of a reader, or of a shorter pass.
        positions: Where each worker's reader starts; at the beginning without.
        delivered: Batches that were delivered before: the workers' turn goes on from there.
    """

    dataset: DataSet
    batch_size: int
    seed: int | str
    rank: int
    world_size: int
    max_bad_fraction: float = 0.5
    positions: Sequence[StreamPosition] = ()
    delivered: int = 0

    def __iter__(self) -> Iterator[WorkerBatch]:
        workers, own = worker_place()
        # A DataLoader asks its workers in turn, always from the first one on.
        turn = (self.delivered + own) % workers
        reader = _Reader(self, self.rank * workers + turn, self.world_size * workers)
        start = replace(self.positions[turn]) if self.positions else StreamPosition()
        return reader.deliveries(start)


@dataclass
class _Reader:
    """One worker's part of a stream."""

    stream: SampleStream
    number: int
    readers: int
    causes: Counter[str] = field(default_factory=Counter)  # of the bad samples so far
    first_bad: BadSample | None = None

    @property
    def identity(self) -> str:
        return f"{self.stream.seed}/{self.stream.dataset.name}/{self.number}"

    def deliveries(self, position: StreamPosition) -> Iterator[WorkerBatch]:
        stream, limit = self.stream, self.stream.max_bad_fraction
        samples: list[Sample] = []
        bad: list[BadSample] = []
        while True:
            for raw, address in self._read_pass(position):
                sample = read_sample(raw, stream.dataset, f"{self.identity}@{address}")
                position.note(isinstance(sample, BadSample))
                if isinstance(sample, BadSample):
                    self._count(sample)
                    bad.append(sample)
                    if position.seen == RECENT and position.bad_share() > limit:
                        break
                    continue
                samples.append(sample)
                if len(samples) == stream.batch_size:
                    yield WorkerBatch(stack(samples, stream.dataset), bad, replace(position))
                    samples, bad = [], []
            too_bad = position.bad_share() > limit or not position.good
            if too_bad and (position.everything or self.readers == 1):
                yield WorkerBatch(None, bad, replace(position), self._fault(position))
                return
            # This reader's share may just be the broken one: it reads everything from now on.
            position.next_pass(everything=too_bad)

    def _read_pass(self, position: StreamPosition) -> Iterator[tuple[RawSample | BadSample, str]]:
        """The rest of a pass from ``position`` on, which goes along; each with its address."""
        source = self.stream.dataset.source
        order = self._share(position.everything)
        identity = f"{self.identity}/{position.number}{'+' if position.everything else ''}"
        random.Random(identity).shuffle(order)
        ahead = self._from(order, position.place, position.index)
        while window := list(itertools.islice(ahead, source.window)):
            start = f"{identity}/{position.place}/{position.index}"
            raws = [raw for raw, _, _ in window]
            random.Random(start).shuffle(raws)
            while position.taken < len(raws):
                position.taken += 1
                yield raws[position.taken - 1], f"{start}/{position.taken}"
            _, position.place, position.index = window[-1]
            position.taken = 0

    def _share(self, everything: bool) -> list[int]:
        """The units that this reader reads; all of them where there are fewer than readers."""
        units = range(self.stream.dataset.source.units)
        alone = everything or len(units) < self.readers
        return list(units if alone else units[self.number :: self.readers])

    def _from(
        self, order: Sequence[int], place: int, index: int
    ) -> Iterator[tuple[RawSample | BadSample, int, int]]:
        """Samples in order, each with the place and index behind it."""
        for at in range(place, len(order)):
            first = index if at == place else 0
            samples = self.stream.dataset.source.read(order[at])
            for number, raw in enumerate(itertools.islice(samples, first, None), first):
                yield raw, at, number + 1

    def _count(self, sample: BadSample) -> None:
        self.causes[sample.cause] += 1
        self.first_bad = self.first_bad or sample
        total = self.causes.total()
        if total <= _LOGGED_BAD_SAMPLES or total % 1000 == 0:
            text = "%s: skipped %s: %s (%d skipped so far by this reader)"
            logger.warning(text, self.stream.dataset.name, sample.key, sample.reason, total)

    def _fault(self, position: StreamPosition) -> DataError:
        name, share = self.stream.dataset.name, position.bad_share()
        if not self.first_bad:
            return DataError(f"datasets.{name}: no readable sample: it holds none at all")
        causes = ", ".join(f"{cause} {count:,}" for cause, count in self.causes.most_common())
        found = f"({causes}); the first: {self.first_bad.key}: {self.first_bad.reason}"
        if share == 1:
            return DataError(
                f"datasets.{name}: no readable sample among the last {position.seen:,} {found}"
            )
        return DataError(
            f"datasets.{name}: {share:.0%} of the last {position.seen:,} samples are bad, more "
            f"than run.max_bad_fraction {self.stream.max_bad_fraction} {found}; mend the data "
            "(check-shards lists what is wrong) or raise the limit"
        )


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
        source = dataset.eval_source or dataset.source
        self.dataset = replace(dataset, image_processor=processor, source=source)
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[OrderedBatch]:
        workers, own = worker_place()
        # A DataLoader takes its workers' batches in turn, so ranks differ first, then workers.
        reader = own * self.world_size + self.rank
        source = self.dataset.source
        samples = enumerate(raw for unit in range(source.units) for raw in source.read(unit))
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
        batch = stack(list(good.values()), self.dataset) if good else None
        return OrderedBatch(list(good), batch, unreadable)
