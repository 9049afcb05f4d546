"""Groups of a data set in batches: every sample once, in order."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch.utils.data import IterableDataset

from minigpt4.datasets.feature_source import CacheableSource, Row, row_of, units_of
from minigpt4.datasets.samples import (
    BadSample,
    Batch,
    DataSet,
    RawSample,
    Sample,
    read_sample,
    stack,
)
from minigpt4.datasets.streams import worker_place


class GroupBatch(NamedTuple):
    """Consecutive samples of one group; a DataLoader pins the tensors of a named tuple."""

    group: int
    units: list[int]  # of each sample
    rows: list[Row]  # of the group's json
    batch: Batch | None  # readable pictures


class GroupBatches(IterableDataset[GroupBatch]):
    """Every sample of some groups once, in order; at least one batch of each group.

    Batches, and so the features to the bit, do not depend on the number of processes and workers.
    """

    def __init__(
        self,
        dataset: DataSet,
        source: CacheableSource,
        groups: Sequence[int],
        batch_size: int,
    ) -> None:
        # Captions are checked by the text processor of the training.
        self.dataset = dataclasses.replace(dataset, text_processor=_any_text)
        self.source = source
        self.groups = groups
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[GroupBatch]:
        workers, own = worker_place()
        # A DataLoader takes its workers' batches in turn.
        for group, share in itertools.islice(self._shares(), own, None, workers):
            yield self._read(group, share)

    def _shares(self) -> Iterator[tuple[int, list[tuple[int, RawSample | BadSample]]]]:
        """Yield the encoded samples of each group with their units, a batch at a time."""
        for group in self.groups:
            units = units_of(self.source, group)
            samples = ((unit, raw) for unit in units for raw in self.source.read(unit))
            yield group, list(itertools.islice(samples, self.batch_size))
            while share := list(itertools.islice(samples, self.batch_size)):
                yield group, share

    def _read(self, group: int, share: list[tuple[int, RawSample | BadSample]]) -> GroupBatch:
        rows: list[Row] = []
        good: list[Sample] = []
        for _, raw in share:
            sample = read_sample(raw, self.dataset, seed="")
            if isinstance(sample, BadSample):
                rows.append(row_of(sample))
                continue
            assert isinstance(raw, RawSample)
            rows.append(row_of(raw))
            good.append(sample)
        batch = stack(good, self.dataset) if good else None
        return GroupBatch(group, [unit for unit, _ in share], rows, batch)


def _any_text(_: str) -> str:
    return "text"
