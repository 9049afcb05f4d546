"""Caching: run the frozen towers once over every picture; a training then reads the features.

A group of the source (a shard, or some hundred pairs) is written whole or not at all, so that the
same command continues wherever it was interrupted.
"""

import dataclasses
import itertools
import logging
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from minigpt4.assembly import build_accelerator, build_datasets, chosen_dtype
from minigpt4.config import Config
from minigpt4.config.checks import check_writable_folder
from minigpt4.datasets.feature_source import (
    INDEX,
    CacheableSource,
    Index,
    Row,
    row_of,
    save_json,
    units_of,
)
from minigpt4.datasets.loaders import worker_place
from minigpt4.datasets.samples import (
    BadSample,
    Batch,
    DataSet,
    RawSample,
    keys_of_images,
    read_sample,
    stack,
    to_device,
)
from minigpt4.errors import DataError, Fault, MiniGPT4Error
from minigpt4.models.build import build_towers
from minigpt4.models.towers import Towers
from minigpt4.preflight.draft import Draft
from minigpt4.preflight.feature_identity import check_cacheable
from minigpt4.preflight.preflight import preflight
from minigpt4.runners.distributed import Distributed
from minigpt4.runners.options import ComputeOptions
from minigpt4.runners.run_folder import RunFolder
from minigpt4.tools.feature_cache.cache_folder import CacheFolder, FeatureWriter

KeptAs = Literal["auto", "fp16", "bf16", "fp32"]
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_BATCH = 32  # where the run says nothing
_NOT_USED = ("llama_model", "ckpt", "prompt_path")  # of the model section

logger = logging.getLogger(__name__)


def cache_features(config: Config, output: Path, kept_as: KeptAs = "auto") -> None:
    """Write the features of a training's data sets into ``<output>/<data set>/``.

    ``kept_as`` is the dtype in the files; ``auto`` is that of the arithmetic.
    """
    # The language model need not be there.
    model = {name: value for name, value in config.model.items() if name not in _NOT_USED}
    complaint = check_writable_folder(str(output))
    others = [Fault("--output", complaint)] if complaint else []
    checked = preflight(dataclasses.replace(config, model=model), "caching", others=others)
    run = checked.run
    accelerator = build_accelerator(
        ComputeOptions(device=run.device, deterministic=run.deterministic, seed=run.seed)
    )
    arithmetic = chosen_dtype(checked, accelerator.device)
    dtype = _DTYPES.get(kept_as, arithmetic)
    datasets = build_datasets(checked, images=True)
    check_cacheable(datasets)
    folder = RunFolder(output)
    output.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process and not folder.lock():
        raise MiniGPT4Error(f"--output: {output}: another process fills it")
    try:
        draft = Draft(checked, accelerator.device.type)
        caches = [CacheFolder(draft, dataset, output, arithmetic, dtype) for dataset in datasets]
        towers = build_towers(checked.model_options, accelerator.device, arithmetic)
        towers.requires_grad_(False).eval()
        towers.to(accelerator.device)
        processes = Distributed(accelerator, run.timeout)
        done = []
        for cache in caches:
            batch_size = cache.dataset.batch_size or run.batch_size_train or _BATCH
            work = _Work(cache, towers, accelerator, processes, batch_size, run.num_workers)
            done.append(work.run())
    finally:
        folder.unlock()
    if accelerator.is_main_process:
        for line in done:
            logger.info("%s", line)
        logger.info("to train from them: datasets.X.features: %s", output)
    accelerator.end_training()


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
        self, dataset: DataSet, source: CacheableSource, groups: Sequence[int], batch_size: int
    ) -> None:
        # Captions are checked by the text processor of the training.
        self.dataset = dataclasses.replace(dataset, text_processor=_any_text)
        self.source = source
        self.groups = groups
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[GroupBatch]:
        workers, own = worker_place()
        # A DataLoader takes its workers' batches in turn.
        shares = itertools.islice(self._shares(), own, None, workers)
        yield from itertools.starmap(self._read, shares)

    def _shares(self) -> Iterator[tuple[int, list[tuple[int, RawSample | BadSample]]]]:
        """Yield the encoded samples of each group with their units, a batch at a time."""
        for group in self.groups:
            units = units_of(self.source, group)
            samples = ((unit, raw) for unit in units for raw in self.source.read(unit))
            yield group, list(itertools.islice(samples, self.batch_size))
            while share := list(itertools.islice(samples, self.batch_size)):
                yield group, share

    def _read(self, group: int, share: list[tuple[int, RawSample | BadSample]]) -> GroupBatch:
        samples = [read_sample(raw, self.dataset, seed="") for _, raw in share]
        good = [sample for sample in samples if not isinstance(sample, BadSample)]
        rows = [
            row_of(sample if isinstance(sample, BadSample) else raw)
            for sample, (_, raw) in zip(samples, share, strict=True)
        ]
        batch = stack(good, self.dataset) if good else None
        return GroupBatch(group, [unit for unit, _ in share], rows, batch)


class _Work:
    """One data set's groups, distributed over the processes."""

    def __init__(
        self,
        cache: CacheFolder,
        towers: Towers,
        accelerator: Accelerator,
        processes: Distributed,
        batch_size: int,
        num_workers: int,
    ) -> None:
        self.cache, self.towers, self.device = cache, towers, accelerator.device
        self.processes = processes
        own = range(processes.rank, cache.groups, processes.count)
        self.entries = {number: cache.complete(number) for number in own}
        self.todo = [number for number, entry in self.entries.items() if entry is None]
        self.loader = DataLoader(
            GroupBatches(cache.dataset, cache.source, self.todo, batch_size),
            batch_size=None,
            num_workers=num_workers if self.todo else 0,
            worker_init_fn=_leave_ctrl_c_to_the_main_process,
            pin_memory=self.device.type == "cuda",
        )

    def run(self) -> str:
        """Make the missing groups and the index; return a line of figures."""
        cache, name, since = self.cache, self.cache.dataset.name, time.monotonic()
        there = [entry["samples"] for entry in self.entries.values() if entry is not None]
        counted = self.processes.gather([(len(there), sum(there), len(self.todo))])
        groups, before, todo = map(sum, zip(*counted, strict=True))
        if self.processes.main and groups:
            text = "%s: %d of %d groups (%d samples) are there already"
            logger.info(text, name, groups, cache.groups, before)
        if self.processes.main and todo:
            (cache.path / INDEX).unlink(missing_ok=True)
        self._make_groups(before)
        found = dict(self.processes.gather([*self.entries.items()]))
        entries = [found[number] for number in range(cache.groups)]
        if self.processes.main:
            save_json(Index(cache.identity, entries), cache.path / INDEX)
        samples, bad = (sum(entry[count] for entry in entries) for count in ("samples", "bad"))
        size = sum(sum(entry["written"].values()) for entry in entries)
        speed = (samples - before) / max(time.monotonic() - since, 1e-9)
        line = f"{name}: {samples:,} samples, {bad:,} of them bad; {size:,} bytes; {speed:,.1f}"
        return f"{line} samples/s" + (f"; {before:,} were there already" if groups else "")

    def _make_groups(self, before: int) -> None:
        dataset, work = self.cache.dataset, self._encode()
        calm = 0.5 if sys.stderr.isatty() else 15.0  # seconds between redraws; few in a log file
        with (
            logging_redirect_tqdm(),
            tqdm(
                desc=dataset.name,
                total=dataset.source.units if dataset.length else None,
                initial=before,
                unit=" samples",
                disable=not self.processes.main,
                mininterval=calm,
            ) as bar,
        ):
            # The processes go in step, batch by batch, so that a lost one is noticed.
            while done := [n for n in self.processes.gather([next(work, None)]) if n is not None]:
                bar.update(sum(done))

    def _encode(self) -> Iterator[int]:
        """Make this process's groups; yield the number of samples of each batch."""
        for number, batches in itertools.groupby(self.loader, key=lambda batch: batch.group):
            self.cache.clear(number)
            counts = dict.fromkeys(units_of(self.cache.source, number), 0)
            rows: list[Row] = []
            writer = FeatureWriter(self.cache.path, number)
            for _, units, read, batch in batches:
                if batch is not None:
                    image = sum(batch["image_counts"]) > 0
                    places = iter(writer.add(self._features(batch)) if image else [])
                    good = [row for row in read if "cause" not in row]
                    for row, count in zip(good, batch["image_counts"], strict=True):
                        row["features"] = list(itertools.islice(places, count))
                rows += read
                for unit in units:
                    counts[unit] += 1
                yield len(read)
            writer.flush()
            self.entries[number] = self.cache.save(
                number, list(counts.values()), rows, writer.written
            )

    @torch.no_grad()
    def _features(self, batch: Batch) -> torch.Tensor:
        """Return the features of a batch on the CPU, in the dtype of the files."""
        image = to_device(batch, self.device)["image"]
        with self.towers.autocast(self.device):
            features = self.towers.encode_frozen(image)
        kept = features.to(self.cache.dtype)
        if not kept.isfinite().all():
            bad = int(kept.flatten(1).isfinite().all(dim=1).logical_not().nonzero()[0, 0])
            text = "the towers give Inf or NaN; compute in run.precision=bf16 or fp32"
            if features[bad].isfinite().all():
                largest = features[bad].abs().max().item()
                text = f"features up to {largest:.3g} do not fit into fp16; use --dtype bf16"
            fault = DataError(f"{keys_of_images(batch)[bad]}: {text}")
            fault.rank_local = True
            raise fault
        return kept.cpu()


def _leave_ctrl_c_to_the_main_process(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _any_text(_: str) -> str:
    return "text"
