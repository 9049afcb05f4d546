"""Loaders: data sets → the endless sequence of batches that one rank trains on."""

import logging
import random
from collections.abc import Iterator, Sequence

from torch.utils.data import DataLoader

from minigpt4.datasets.samples import Batch, DataSet, SampleStream, collate
from minigpt4.errors import DataError

logger = logging.getLogger(__name__)


class MixedLoader:
    """Batches of several data sets; each step draws one data set by ``sample_ratio``.

    Args:
        datasets: At least one.
        batch_size: Samples per process, for data sets that name no batch size of their own.
        num_workers: Worker processes for each data set; 0 reads in this process.
        seed: Of the run; the same seed, rank and numbers give the same sequence.
        rank: This process.
        world_size: Number of processes.
        pin_memory: Page-locked batches, for a GPU.
    """

    def __init__(
        self,
        datasets: Sequence[DataSet],
        batch_size: int | None,
        num_workers: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        assert batch_size or all(dataset.batch_size for dataset in datasets)
        self._ratios = [dataset.sample_ratio for dataset in datasets]
        if sum(self._ratios) <= 0:
            raise DataError("datasets: every sample_ratio is 0; give at least one data set weight")
        self._loaders = [
            DataLoader(
                SampleStream(dataset, seed, rank, world_size),
                batch_size=dataset.batch_size or batch_size,
                num_workers=num_workers,
                collate_fn=collate,
                pin_memory=pin_memory,
            )
            for dataset in datasets
        ]
        self._rng = random.Random(f"{seed}/mix/{rank}")
        readers = world_size * max(1, num_workers)
        for dataset in datasets:
            if rank == 0 and dataset.source.units < readers:
                text = (
                    "datasets.%s: %d parts for %d readers; they share parts, each in its own order"
                )
                logger.info(text, dataset.name, dataset.source.units, readers)

    def __iter__(self) -> Iterator[Batch]:
        iterators = [iter(loader) for loader in self._loaders]
        while True:
            (iterator,) = self._rng.choices(iterators, self._ratios)
            batch = next(iterator)
            if isinstance(batch, DataError):
                # Ends the workers now: the error's traceback would keep this frame alive.
                del iterator, iterators
                raise batch
            yield batch
