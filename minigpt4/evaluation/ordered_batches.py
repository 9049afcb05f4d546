"""Ordered batches: every sample of a data set once, in order, for an evaluation."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch.utils.data import IterableDataset

from minigpt4.datasets.loaders import worker_place
from minigpt4.datasets.samples import (
    BadSample,
    Batch,
    DataSet,
    RawSample,
    Sample,
    read_sample,
    stack,
)


@dataclass(frozen=True)
class OrderedBatch:
    """Consecutive samples of a data set; the readable ones are a batch.

    Attributes:
        numbers: Place in the data set of each sample of the batch, from 0.
        batch: Readable samples, keyed by origin; None without any.
        unreadable: Place in the data set → the bad sample there.
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
