"""Loaders: data sets → the endless sequence of batches that one rank trains on.

A reader is one worker process of one rank. Its stream is a function of seed, data set, reader and
number of readers; from a saved position it continues exactly as it would have without a stop.
"""

import itertools
import logging
import random
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from minigpt4.datasets.samples import (
    BadSample,
    Batch,
    DataSet,
    RawSample,
    Sample,
    read_sample,
    stack,
)
from minigpt4.errors import DataError

RECENT = 1000  # samples of which the fraction of bad ones is compared with its limit
_SHARED_PARTS = "datasets.%s: %d parts for %d readers; they share parts, each in its own order"
_LOGGED_BAD_SAMPLES = 5  # per reader; later ones are only counted

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class MixedLoader:
    """Batches of several data sets; each step samples one data set by ``sample_ratio``.

    Attributes:
        batch_size: Samples per process, for data sets without a batch size of their own.
        num_workers: Worker processes for each data set; 0 reads in this process.
        seed: Random seed of the run; may be changed before the first batch.
        max_bad_fraction: Fraction of bad samples above which the run ends.
    """

    datasets: Sequence[DataSet]
    batch_size: int | None
    num_workers: int
    seed: int
    rank: int = 0
    world_size: int = 1
    pin_memory: bool = False
    max_bad_fraction: float = 0.5

    def __post_init__(self) -> None:
        assert self.batch_size or all(dataset.batch_size for dataset in self.datasets)
        self._ratios = [dataset.sample_ratio for dataset in self.datasets]
        if sum(self._ratios) <= 0:
            raise DataError("datasets: every sample_ratio is 0; give at least one data set weight")
        self._suffix = ""  # of the seeds, where a sequence cannot be continued
        self._names = [dataset.name for dataset in self.datasets]
        self._workers = max(1, self.num_workers)
        self._readers = self.world_size * self._workers
        self._delivered = dict.fromkeys(self._names, 0)
        workers = range(self._workers)
        self._positions = {name: [StreamPosition() for _ in workers] for name in self._names}
        self._iterators: dict[str, Iterator[WorkerBatch]] = {}
        self._bad: list[tuple[str, BadSample]] = []
        for dataset in self.datasets if self.rank == 0 else ():
            self._bad += [(dataset.name, bad) for bad in dataset.missing]
            if (units := dataset.source.units) < self._readers:
                logger.info(_SHARED_PARTS, dataset.name, units, self._readers)

    def __iter__(self) -> Iterator[Batch]:
        self._iterators = {own.name: iter(self._open(own)) for own in self.datasets}
        while True:
            name = self._sample_data_set()
            found: WorkerBatch = next(self._iterators[name])
            self._bad += [(name, bad) for bad in found.bad]
            if found.fault:
                self.close()
                raise found.fault
            self._positions[name][self._delivered[name] % self._workers] = found.position
            self._delivered[name] += 1
            assert found.batch is not None
            yield found.batch

    def _open(self, dataset: DataSet) -> "DataLoader[WorkerBatch]":
        batch_size, seed = dataset.batch_size or self.batch_size or 0, f"{self.seed}{self._suffix}"
        place = self.rank, self.world_size, self.max_bad_fraction
        start = self._positions[dataset.name], self._delivered[dataset.name]
        stream = SampleStream(dataset, batch_size, seed, *place, *start)
        return DataLoader(
            stream,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            worker_init_fn=leave_signals_to_the_trainer,
            generator=torch.Generator(),  # not the run's random numbers
        )

    def take_bad(self) -> list[tuple[str, BadSample]]:
        """Return data set and bad sample of those skipped since the last call."""
        bad, self._bad = self._bad, []
        return bad

    def close(self) -> None:
        """End the workers, which ignore SIGTERM."""
        self._iterators.clear()

    def state(self) -> dict[str, Any]:
        """Return the position of the sequence, after the last batch that was given."""
        cursors = {name: [list(astuple(p)) for p in own] for name, own in self._positions.items()}
        readers = {"readers": self._readers, "workers": self._workers}
        return {"data": {**readers, "delivered": dict(self._delivered), "cursors": cursors}}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue after the batch at which :meth:`state` was asked; before the first batch.

        With other readers or data sets, read in a new order.
        """
        state = saved["data"]
        readers, names = state["readers"], list(state["delivered"])
        now = (self._readers, self._workers, self._names)
        if (readers, state["workers"], names) == now:
            self._delivered = dict(state["delivered"])
            self._positions = {
                name: [StreamPosition(*position) for position in own]
                for name, own in state["cursors"].items()
            }
            return
        self._suffix = f"+{sum(state['delivered'].values())}"
        if self.rank == 0:
            text = (
                "the run was interrupted with %d readers of %s, now there are %d of %s: the data "
                "go on in a new order"
            )
            told = (readers, ", ".join(names), self._readers, ", ".join(self._names))
            logger.warning(text, *told)

    def _sample_data_set(self) -> str:
        """Return the data set of the next step; a function of seed, rank and step."""
        step = sum(self._delivered.values())
        seed = f"{self.seed}/mix/{self.rank}{self._suffix}/{step}"
        return random.Random(seed).choices(self._names, self._ratios)[0]


def leave_signals_to_the_trainer(_worker: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group; the trainer still needs its
    # readers for the step that it finishes, and they end with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def worker_place() -> tuple[int, int]:
    """Return how many workers a DataLoader has, and which of them this process is."""
    worker = get_worker_info()
    return (worker.num_workers, worker.id) if worker else (1, 0)


@dataclass
class StreamPosition:
    """Where a reader is in its endless stream.

    Attributes:
        number: Complete passes over the reader's share.
        place: Within the pass, the unit in which the current window begins …
        index: … and the sample of that unit.
        taken: Samples of the window that are read.
        good: Good samples of this pass.
        everything: Whether its own share was too bad, so that it reads the whole data set.
        recent: One bit for each of the last samples, the newest lowest; set where it was bad.
        seen: Number of bits that count.
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
        """Return the fraction of bad samples among the last ``RECENT``."""
        return self.recent.bit_count() / max(self.seen, 1)


@dataclass(frozen=True)
class WorkerBatch:
    """What a reader hands over.

    Attributes:
        batch: Complete batch; None with a fault.
        bad: Samples skipped on the way to it.
        position: Where the reader is after it.
        fault: Error that ends the stream; raised in a worker, it would be a traceback.
    """

    batch: Batch | None
    bad: list[BadSample]
    position: StreamPosition
    fault: DataError | None = None

    def pin_memory(self) -> "WorkerBatch":
        """Called by the DataLoader, which cannot look into a class."""
        if self.batch is None:
            return self
        pinned = {**self.batch, "image": self.batch["image"].pin_memory()}
        return replace(self, batch=Batch(**pinned))  # type: ignore[typeddict-item]


@dataclass(eq=False)
class SampleStream(IterableDataset[WorkerBatch]):
    """An endless stream of one data set's batches for one rank; see :class:`MixedLoader`.

    Attributes:
        positions: Where each worker's reader starts; at the beginning without.
        delivered: Number of batches delivered before, which decides whose turn it is.
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
        self._reader, self._readers = self.rank * workers + turn, self.world_size * workers
        self._identity = f"{self.seed}/{self.dataset.name}/{self._reader}"
        self._causes: Counter[str] = Counter()  # of the bad samples so far
        self._first_bad: BadSample | None = None
        return self._batches(replace(self.positions[turn]) if self.positions else StreamPosition())

    def _batches(self, position: StreamPosition) -> Iterator[WorkerBatch]:
        samples: list[Sample] = []
        bad: list[BadSample] = []
        while True:
            for raw, address in self._read_pass(position):
                sample = read_sample(raw, self.dataset, f"{self._identity}@{address}")
                position.note(isinstance(sample, BadSample))
                if isinstance(sample, BadSample):
                    self._count(sample)
                    bad.append(sample)
                    if position.seen == RECENT and position.bad_share() > self.max_bad_fraction:
                        break
                    continue
                samples.append(sample)
                if len(samples) == self.batch_size:
                    yield WorkerBatch(stack(samples, self.dataset), bad, replace(position))
                    samples, bad = [], []
            too_bad = position.bad_share() > self.max_bad_fraction or not position.good
            if too_bad and (position.everything or self._readers == 1):
                yield WorkerBatch(None, bad, replace(position), self._fault(position))
                return
            if too_bad:  # its share may just be the broken one: it reads everything from now on
                position = StreamPosition(position.number, everything=True)
            position.number += 1
            position.place = position.index = position.taken = position.good = 0

    def _read_pass(self, position: StreamPosition) -> Iterator[tuple[RawSample | BadSample, str]]:
        """Yield the rest of a pass, each sample with its address; ``position`` goes along."""
        units = range(self.dataset.source.units)
        alone = position.everything or len(units) < self._readers
        order = list(units if alone else units[self._reader :: self._readers])
        identity = f"{self._identity}/{position.number}{'+' if position.everything else ''}"
        random.Random(identity).shuffle(order)
        ahead = self._from(order, position.place, position.index)
        while window := list(itertools.islice(ahead, self.dataset.source.window)):
            start = f"{identity}/{position.place}/{position.index}"
            raws = [raw for raw, _, _ in window]
            random.Random(start).shuffle(raws)
            while position.taken < len(raws):
                position.taken += 1
                yield raws[position.taken - 1], f"{start}/{position.taken}"
            _, position.place, position.index = window[-1]
            position.taken = 0

    def _from(
        self, order: Sequence[int], place: int, index: int
    ) -> Iterator[tuple[RawSample | BadSample, int, int]]:
        """Yield samples in order, each with the place and index after it."""
        for at in range(place, len(order)):
            first = index if at == place else 0
            samples = self.dataset.source.read(order[at])
            for number, raw in enumerate(itertools.islice(samples, first, None), first):
                yield raw, at, number + 1

    def _count(self, sample: BadSample) -> None:
        self._causes[sample.cause] += 1
        self._first_bad = self._first_bad or sample
        total = self._causes.total()
        if total <= _LOGGED_BAD_SAMPLES or total % 1000 == 0:
            text = "%s: skipped %s: %s (%d skipped so far by this reader)"
            logger.warning(text, self.dataset.name, sample.key, sample.reason, total)

    def _fault(self, position: StreamPosition) -> DataError:
        name, share = f"datasets.{self.dataset.name}", position.bad_share()
        if not self._first_bad:
            return DataError(f"{name}: no readable sample: it holds none at all")
        causes = ", ".join(f"{cause} {count:,}" for cause, count in self._causes.most_common())
        found = f"({causes}); the first: {self._first_bad.key}: {self._first_bad.reason}"
        if share == 1:
            return DataError(f"{name}: no readable sample among the last {position.seen:,} {found}")
        return DataError(
            f"{name}: {share:.0%} of the last {position.seen:,} samples are bad, more than "
            f"run.max_bad_fraction {self.max_bad_fraction} {found}; fix the data "
            "(check-shards lists what is wrong) or raise the limit"
        )
