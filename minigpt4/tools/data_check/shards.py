"""Shards: every sample of webdataset shards read as a training reads it, shard by shard."""

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import forkserver
from typing import Any

from tqdm import tqdm

from minigpt4.datasets.caption_shards import ShardSource, list_shards
from minigpt4.datasets.caption_shards import check_shards as complaint_about
from minigpt4.datasets.samples import BadSample
from minigpt4.errors import MiniGPT4Error
from minigpt4.files import JsonLines
from minigpt4.processors import BlipCaption
from minigpt4.tools.data_check.figures import Tally
from minigpt4.tools.data_check.samples import check_sample


@dataclass
class ShardReport:
    """What one shard holds."""

    good: int = 0
    repeated: int = 0  # samples with the key of an earlier one
    bad: list[BadSample] = field(default_factory=list)


@dataclass(kw_only=True)
class ShardFigures(Tally):
    """What all shards hold."""

    shards: list[str]
    repeated: int = 0

    def add(self, report: ShardReport) -> None:
        self.good += report.good
        self.repeated += report.repeated
        for bad in report.bad:
            self.add_bad(bad)

    def lines(self) -> list[str]:
        lines = [
            f"{len(self.shards):,} shards, {self.causes['missing shard']:,} of them missing; "
            f"{self.total:,} samples, {self.good:,} of them good; {self.rate:,.0f} samples/s",
            *self.bad_lines("", 20),
        ]
        if self.repeated:
            lines.append(f"{self.repeated:,} good samples have the key of an earlier one")
        return lines

    def as_json(self) -> dict[str, Any]:
        own = {"shards": len(self.shards), "missing_shards": self.causes["missing shard"]}
        return {**own, **self.counts("samples"), "repeated_keys": self.repeated}


def check_shards(patterns: list[str], workers: int, listed: JsonLines | None) -> ShardFigures:
    """Read every shard that the patterns name, and print what is found in them.

    ``workers`` are processes; 0 reads in this one. Bad samples are ``listed``.
    """
    if workers < 0:
        raise MiniGPT4Error(f"--workers: {workers} is negative")
    if complaint := complaint_about(patterns):
        raise MiniGPT4Error(complaint)
    if listed:
        listed.clear()
    figures = ShardFigures(shards=list(dict.fromkeys(list_shards(patterns))))
    since = time.monotonic()
    reports = contextlib.closing(_reports(figures.shards, workers))  # ends its processes at once
    with reports as found, tqdm(total=len(figures.shards), unit="shard", disable=None) as bar:
        for report in found:
            figures.add(report)
            if listed and report.bad:
                listed.append(*(bad.row() for bad in report.bad))
            bar.update()
    figures.seconds = time.monotonic() - since
    print("\n".join(figures.lines()))
    return figures


def check_shard(shard: str) -> ShardReport:
    """Read every sample of a shard as a training reads it."""
    caption, report, keys = BlipCaption(), ShardReport(), set[str]()
    for raw in ShardSource([shard], window=1).read(0):
        sample = check_sample(raw, caption, "decode")
        if isinstance(sample, BadSample):
            report.bad.append(sample)
        else:
            report.good += 1
            report.repeated += sample.key in keys
            keys.add(sample.key)
    return report


def _reports(shards: Sequence[str], workers: int) -> Generator[ShardReport, None, None]:
    if not workers:
        yield from map(check_shard, shards)
        return
    # Forked from a fresh process, which has no threads; it imports torch once for all.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minigpt4.datasets.caption_shards", "minigpt4.processors"])
    # It and its workers inherit this: Ctrl-C reaches the whole group, and one process reports it.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, before)
    executor = ProcessPoolExecutor(min(workers, len(shards)), context)
    try:
        for report in as_completed({executor.submit(check_shard, shard) for shard in shards}):
            yield report.result()
    except BrokenProcessPool as error:
        raise MiniGPT4Error(
            "a worker died, killed for its memory perhaps; try a smaller --workers"
        ) from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():
            worker.terminate()
