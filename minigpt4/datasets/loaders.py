"""Loaders: data sets → the endless sequence of batches that one rank trains on."""

import logging
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from minigpt4.datasets.samples import BadSample, Batch, DataSet
from minigpt4.datasets.streams import SampleStream, StreamPosition, WorkerBatch
from minigpt4.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class MixedLoader:
    """Batches of several data sets; each step draws one data set by ``sample_ratio``.

    Attributes:
        datasets: At least one.
        batch_size: Samples per process, for data sets that name no batch size of their own.
        num_workers: Worker processes for each data set; 0 reads in this process.
        seed: Of the run; the same seed, rank and numbers give the same sequence. May be changed
            before the first batch.
        rank: This process.
        world_size: Number of processes.
        pin_memory: Page-locked batches, for a GPU.
        max_bad_fraction: More bad samples than this end the run.
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
        datasets = self.datasets
        assert self.batch_size or all(dataset.batch_size for dataset in datasets)
        self._ratios = [dataset.sample_ratio for dataset in datasets]
        if sum(self._ratios) <= 0:
            raise DataError("datasets: every sample_ratio is 0; give at least one data set weight")
        self._suffix = ""  # of the seeds, where a sequence cannot be continued
        missing = [(dataset.name, bad) for dataset in datasets for bad in dataset.missing]
        self._bad: list[tuple[str, BadSample]] = missing if self.rank == 0 else []
        self._names = [dataset.name for dataset in datasets]
        self._workers = max(1, self.num_workers)
        self._readers = self.world_size * self._workers
        self._delivered = dict.fromkeys(self._names, 0)
        self._positions = {
            name: [StreamPosition() for _ in range(self._workers)] for name in self._names
        }
        self._iterators: dict[str, Iterator[WorkerBatch]] = {}
        few = [dataset for dataset in datasets if dataset.source.units < self._readers]
        if few and self.rank == 0:
            self._tell_of_shared_parts(few)

    def _tell_of_shared_parts(self, datasets: Sequence[DataSet]) -> None:
        text = "datasets.%s: %d parts for %d readers; they share parts, each in its own order"
        for dataset in datasets:
            logger.info(text, dataset.name, dataset.source.units, self._readers)

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
        return DataLoader(
            SampleStream(
                dataset,
                dataset.batch_size or self.batch_size or 0,
                f"{self.seed}{self._suffix}",
                self.rank,
                self.world_size,
                self.max_bad_fraction,
                self._positions[dataset.name],
                self._delivered[dataset.name],
            ),
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            worker_init_fn=leave_signals_to_the_trainer,
            # Of its own: a loader that is made again must not use the run's random numbers.
            generator=torch.Generator(),
        )

    def take_bad(self) -> list[tuple[str, BadSample]]:
        """Return data set and bad sample of those skipped since the last call."""
        bad, self._bad = self._bad, []
        return bad

    def close(self) -> None:
        """End the workers: they leave SIGTERM, with which they would end otherwise, to us."""
        self._iterators.clear()

    def state(self) -> dict[str, Any]:
        """Return the position of the sequence, after the last batch that was given."""
        cursors = {name: [list(astuple(p)) for p in own] for name, own in self._positions.items()}
        readers = {"readers": self._readers, "workers": self._workers}
        return {"data": {**readers, "delivered": dict(self._delivered), "cursors": cursors}}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue after the batch at which :meth:`state` was asked; before the first batch."""
        state = saved["data"]
        now = [self._readers, self._workers, self._names]
        if [state["readers"], state["workers"], list(state["delivered"])] == now:
            self._delivered = dict(state["delivered"])
            self._positions = {
                name: [StreamPosition(*position) for position in own]
                for name, own in state["cursors"].items()
            }
            return
        self._start_anew(state)

    def _start_anew(self, state: Mapping[str, Any]) -> None:
        """Read in a new order, after a run of other readers or data sets."""
        self._suffix = f"+{sum(state['delivered'].values())}"
        if self.rank == 0:
            logger.warning(
                "the run was interrupted with %d readers of %s, now there are %d of %s: the data "
                "go on in a new order",
                state["readers"],
                ", ".join(state["delivered"]),
                self._readers,
                ", ".join(self._names),
            )

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
