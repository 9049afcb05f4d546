"""Loaders: data sets → the endless sequence of batches that one rank trains on."""

import logging
import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any

import torch
from torch.utils.data import DataLoader

from minigpt4.datasets.samples import BadSample, Batch, DataSet
from minigpt4.datasets.streams import Cursor, Delivery, SampleStream
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
        max_bad_fraction: More bad samples than this end the run.
        state: What :meth:`state` gave; the sequence goes on behind the batch it was asked after.

    Attributes:
        bad: Data set and bad sample of those skipped so far; the caller empties it.
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
        max_bad_fraction: float = 0.5,
        state: dict[str, Any] | None = None,
    ) -> None:
        assert batch_size or all(dataset.batch_size for dataset in datasets)
        self._ratios = [dataset.sample_ratio for dataset in datasets]
        if sum(self._ratios) <= 0:
            raise DataError("datasets: every sample_ratio is 0; give at least one data set weight")
        self.bad: list[tuple[str, BadSample]] = []
        self._names = [dataset.name for dataset in datasets]
        self._workers = max(1, num_workers)
        self._readers = world_size * self._workers
        self._delivered = dict.fromkeys(self._names, 0)
        self._cursors = {name: [Cursor() for _ in range(self._workers)] for name in self._names}
        self._mix_seed = f"{seed}/mix/{rank}"
        self._iterators: dict[str, Iterator[Delivery]] = {}
        stream_seed = self._restore(state, seed, rank) if state else str(seed)
        self._loaders = {
            dataset.name: DataLoader(
                SampleStream(
                    dataset,
                    dataset.batch_size or batch_size or 0,
                    stream_seed,
                    rank,
                    world_size,
                    max_bad_fraction,
                    self._cursors[dataset.name],
                    self._delivered[dataset.name],
                ),
                batch_size=None,
                num_workers=num_workers,
                pin_memory=pin_memory,
                worker_init_fn=leave_signals_to_the_trainer,
                # Of its own: a loader that is made again must not draw from the run's numbers.
                generator=torch.Generator(),
            )
            for dataset in datasets
        }
        for dataset in datasets:
            if rank == 0 and dataset.source.units < self._readers:
                text = (
                    "datasets.%s: %d parts for %d readers; they share parts, each in its own order"
                )
                logger.info(text, dataset.name, dataset.source.units, self._readers)

    def __iter__(self) -> Iterator[Batch]:
        self._iterators = {name: iter(loader) for name, loader in self._loaders.items()}
        while True:
            name = self._draw()
            delivery: Delivery = next(self._iterators[name])
            self.bad += [(name, bad) for bad in delivery.bad]
            if delivery.fault:
                self.close()
                raise delivery.fault
            self._cursors[name][self._delivered[name] % self._workers] = delivery.cursor
            self._delivered[name] += 1
            assert delivery.batch is not None
            yield delivery.batch

    def close(self) -> None:
        """End the workers: they leave SIGTERM, with which they would end otherwise, to us."""
        self._iterators.clear()

    def state(self) -> dict[str, Any]:
        """Where the sequence stands, as plain numbers: behind the last batch that was given."""
        cursors = {name: [list(astuple(c)) for c in own] for name, own in self._cursors.items()}
        return {
            "readers": self._readers,
            "workers": self._workers,
            "delivered": dict(self._delivered),
            "cursors": cursors,
        }

    def _draw(self) -> str:
        """The data set of the next step; a function of seed, rank and step."""
        step = sum(self._delivered.values())
        return random.Random(f"{self._mix_seed}/{step}").choices(self._names, self._ratios)[0]

    def _restore(self, state: dict[str, Any], seed: int, rank: int) -> str:
        """Take up ``state``; the seed of the streams."""
        now = [self._readers, self._workers, self._names]
        fits = [state["readers"], state["workers"], list(state["delivered"])] == now
        if fits:
            self._delivered = dict(state["delivered"])
            self._cursors = {
                name: [Cursor(*cursor) for cursor in own] for name, own in state["cursors"].items()
            }
            return str(seed)
        step = sum(state["delivered"].values())
        if rank == 0:
            logger.warning(
                "the run was interrupted with %d readers of %s, now there are %d of %s: the data "
                "go on in a new order",
                state["readers"],
                ", ".join(state["delivered"]),
                self._readers,
                ", ".join(self._names),
            )
        self._mix_seed += f"+{step}"
        return f"{seed}+{step}"


def leave_signals_to_the_trainer(_worker: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group; the trainer still needs its
    # readers for the step that it finishes, and they end with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
