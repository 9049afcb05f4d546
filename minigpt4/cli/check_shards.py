"""Read every sample of webdataset shards, and tell how many are bad, which, and why."""

import argparse
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from minigpt4.errors import MiniGPT4Error

if TYPE_CHECKING:
    from minigpt4.datasets.samples import BadSample

_SHOWN = 5  # bad samples that are printed; --output lists all

_EPILOG = """
Pictures are decoded whole and captions processed, as a training with the default processors does.
Of a sample's json only "caption" counts; img2dataset's "status", "width" and so on decide nothing.
Exit code: 0 when every sample is good; 1 when samples or shards are bad, or there is no sample;
2 for a mistake, such as a pattern that names no shard on disk.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``check-shards``."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "patterns",
        nargs="+",
        metavar="PATTERN",
        help="as build_info.storage: braces ('shards/{00000..00010}.tar'), globs, folders, tars",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes, each of which reads whole shards; 0 reads in this one",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="list every bad sample there, as JSON lines"
    )


def run(arguments: argparse.Namespace) -> None:
    """Check and print; the exit code says whether anything is bad."""
    from minigpt4.datasets.caption_shards import check_shards, list_shards

    if arguments.workers < 0:
        raise MiniGPT4Error(f"--workers: {arguments.workers} is negative")
    if complaint := check_shards(arguments.patterns):
        raise MiniGPT4Error(complaint)
    figures = Figures(list(dict.fromkeys(list_shards(arguments.patterns))))
    if arguments.output:
        _write(arguments.output, "")
    since = time.monotonic()
    with tqdm(total=len(figures.shards), unit="shard", disable=None) as bar:

        def take(report: ShardReport) -> None:
            figures.add(report)
            if arguments.output:
                lines = [json.dumps(bad.row()) + "\n" for bad in report.bad]
                _write(arguments.output, "".join(lines), mode="a")
            bar.update()

        _check_all(figures.shards, arguments.workers, take)
    figures.seconds = time.monotonic() - since
    print("\n".join(figures.lines()))
    if arguments.output and figures.causes:
        print(f"all of them: {arguments.output}")
    if arguments.json:
        _write(arguments.json, json.dumps(figures.as_json(), indent=2) + "\n")
    if figures.causes or not figures.good:
        sys.exit(1)


@dataclasses.dataclass
class ShardReport:
    """What one shard holds."""

    good: int = 0
    repeated: int = 0  # samples with the key of an earlier one
    bad: list["BadSample"] = dataclasses.field(default_factory=list)


def check_shard(shard: str) -> ShardReport:
    """Every sample of a shard, read as a training reads it."""
    import torch

    from minigpt4.datasets.caption_shards import ShardSource
    from minigpt4.datasets.samples import BadSample, DataSet, read_sample
    from minigpt4.processors.text_processors import build_blip_caption

    pixels = torch.empty(0)  # to be decoded is enough
    source = ShardSource([shard], window=1)
    dataset = DataSet("", source, lambda image: pixels, build_blip_caption())
    report = ShardReport()
    keys: set[str] = set()
    for raw in source.read(0):
        sample = read_sample(raw, dataset, seed="")
        if isinstance(sample, BadSample):
            report.bad.append(sample)
        else:
            report.good += 1
            report.repeated += sample["key"] in keys
            keys.add(sample["key"])
    return report


@dataclasses.dataclass
class Figures:
    """What all shards hold."""

    shards: list[str]
    good: int = 0
    repeated: int = 0
    causes: Counter[str] = dataclasses.field(default_factory=Counter)
    first: list["BadSample"] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def add(self, report: ShardReport) -> None:
        self.good += report.good
        self.repeated += report.repeated
        self.causes.update(bad.cause for bad in report.bad)
        self.first += report.bad[: _SHOWN - len(self.first)]

    @property
    def samples(self) -> int:
        """Good and bad ones; what is wrong with a whole shard is no sample."""
        whole = sum(count for cause, count in self.causes.items() if cause.endswith(" shard"))
        return self.good + self.causes.total() - whole

    def lines(self) -> list[str]:
        missing = self.causes["missing shard"]
        rate = self.samples / max(self.seconds, 1e-9)
        lines = [
            f"{len(self.shards):,} shards, {missing:,} of them missing; {self.samples:,} samples, "
            f"{self.good:,} of them good; {rate:,.0f} samples/s"
        ]
        lines += [f"  {cause:<20}{count:>9,}" for cause, count in self.causes.most_common()]
        lines += [f"for example {bad.key}: {bad.reason}" for bad in self.first]
        if self.repeated:
            lines.append(f"{self.repeated:,} good samples have the key of an earlier one")
        return lines

    def as_json(self) -> dict[str, Any]:
        return {
            "shards": len(self.shards),
            "missing_shards": self.causes["missing shard"],
            "samples": self.samples,
            "good": self.good,
            "bad": dict(self.causes.most_common()),
            "repeated_keys": self.repeated,
            "seconds": round(self.seconds, 3),
            "samples_per_second": round(self.samples / max(self.seconds, 1e-9), 1),
        }


def _check_all(shards: Sequence[str], workers: int, take: Callable[[ShardReport], None]) -> None:
    """Hand over the report of each shard as it is done."""
    if not workers:
        for shard in shards:
            take(check_shard(shard))
        return
    # Forked from a fresh process, which has no threads; it imports torch once for all.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["minigpt4.datasets.caption_shards", "minigpt4.processors"])
    # It and its workers inherit this: Ctrl-C reaches the whole group, and one process is to tell.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, before)
    executor = ProcessPoolExecutor(min(workers, len(shards)), context)
    try:
        for report in as_completed({executor.submit(check_shard, shard) for shard in shards}):
            take(report.result())
    except BrokenProcessPool as error:
        raise MiniGPT4Error(
            "a worker died, killed for its memory perhaps; try a smaller --workers"
        ) from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():
            worker.terminate()


def _write(file: Path, text: str, mode: str = "w") -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, mode, encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        raise MiniGPT4Error(f"{file}: cannot be written ({error})") from error
