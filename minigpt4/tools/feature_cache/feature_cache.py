"""Caching: the frozen towers run once over every picture; a training then reads what they made.

``python -m minigpt4 cache-features`` comes here. A group of the source (a shard, or some hundred
pairs) is written whole or not at all, so that the same command goes on wherever it was cut short.
"""

import dataclasses
import itertools
import logging
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from minigpt4.assembly import build_accelerator, build_datasets, chosen_dtype
from minigpt4.config import Config
from minigpt4.config.checks import check_writable_folder
from minigpt4.datasets.feature_source import (
    CacheableSource,
    Group,
    Index,
    Row,
    files_of,
    group_count,
    group_file,
    load_group,
    remove_index,
    save_group,
    save_index,
    units_of,
)
from minigpt4.datasets.features import save_features
from minigpt4.datasets.samples import Batch, DataSet, keys_of_images, to_device
from minigpt4.errors import ConfigError, DataError, MiniGPT4Error
from minigpt4.models.build import build_towers
from minigpt4.models.towers import Towers
from minigpt4.preflight.draft import Draft
from minigpt4.preflight.feature_identity import check_cacheable, identity_difference, identity_of
from minigpt4.preflight.file_facts import describe, files_difference, with_present_times
from minigpt4.preflight.preflight import preflight
from minigpt4.registry import Fault
from minigpt4.runners.distributed import Distributed
from minigpt4.runners.options import ComputeOptions
from minigpt4.runners.run_folder import RunFolder
from minigpt4.tools.feature_cache.group_batches import GroupBatches

KeptAs = Literal["auto", "fp16", "bf16", "fp32"]
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_FILE_BYTES = 256 << 20  # of features in memory, and in a file
_BATCH = 32  # where the run says nothing
_NOT_USED = ("llama_model", "ckpt", "prompt_path")  # of the model section

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Figures:
    """Of one data set."""

    samples: int = 0
    bad: int = 0
    bytes: int = 0
    groups_before: int = 0
    samples_before: int = 0
    seconds: float = 0.0

    def line(self, name: str) -> str:
        new = self.samples - self.samples_before
        text = (
            f"{name}: {self.samples:,} samples, {self.bad:,} of them bad; {self.bytes:,} bytes; "
            f"{new / max(self.seconds, 1e-9):,.1f} samples/s"
        )
        before = f"; {self.samples_before:,} samples were there already"
        return text + (before if self.groups_before else "")


def cache_features(config: Config, output: Path, kept_as: KeptAs = "auto") -> dict[str, Figures]:
    """Every data set's features into ``<output>/<data set>/``.

    Args:
        config: Of a training.
        output: Folder, which ``datasets.X.features`` then names.
        kept_as: Dtype in the files; ``auto`` is that of the arithmetic.

    Raises:
        MiniGPT4Error: for a fault in the config, the weights or the data; a folder that was made
            of something else, cannot be written, or that another process fills.
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
    dtype = arithmetic if kept_as == "auto" else _DTYPES[kept_as]
    datasets = build_datasets(checked, images=True)
    check_cacheable(datasets)
    folder = RunFolder(output)
    output.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process and not folder.lock():
        raise MiniGPT4Error(f"--output: {output}: another process fills it")
    try:
        draft = Draft(checked, accelerator.device.type)
        caches = [_Cache(draft, dataset, output, arithmetic, dtype) for dataset in datasets]
        towers = build_towers(checked.model_options, accelerator.device, arithmetic)
        towers.requires_grad_(False).eval()
        towers.to(accelerator.device)
        processes = Distributed(accelerator, run.timeout)
        told = {}
        for cache in caches:
            batch_size = cache.dataset.batch_size or run.batch_size_train or _BATCH
            work = _Work(cache, towers, accelerator, processes, batch_size, run.num_workers)
            told[cache.dataset.name] = work.run()
    finally:
        folder.unlock()
    if accelerator.is_main_process:
        for name, figures in told.items():
            logger.info("%s", figures.line(name))
        logger.info("to train from them: datasets.X.features: %s", output)
    accelerator.end_training()
    return told


class _Cache:
    """One data set's folder.

    Raises:
        ConfigError: where it holds features of something else.
    """

    def __init__(
        self,
        draft: Draft,
        dataset: DataSet,
        output: Path,
        arithmetic: torch.dtype,
        dtype: torch.dtype,
    ) -> None:
        assert isinstance(dataset.source, CacheableSource)
        self.dataset, self.source = dataset, dataset.source
        self.folder = folder = output / dataset.name
        self.dtype = dtype
        self.identity = identity_of(draft, dataset, arithmetic, dtype)
        folder.mkdir(exist_ok=True)
        first = next((group for group in map(self._load, range(self.groups)) if group), None)
        if first is None:
            return
        difference = identity_difference(first.identity, draft, dataset)
        for name in ("arithmetic", "dtype"):
            before, now = first.identity[name], self.identity[name]
            if difference is None and before != now:
                difference = f"made with {name} {before}, now {now}"
        if difference:
            raise ConfigError(f"--output: {folder}: {difference}; choose another folder")

    @property
    def groups(self) -> int:
        return group_count(self.source)

    def done(self, number: int) -> dict[str, Any] | None:
        """A finished group as the index lists it; None where it is to be made, or made anew."""
        group = self._load(number)
        if group is None or files_difference(group.files, files_of(self.source, number)):
            return None
        for name, size in group.features.items():
            file = self.folder / name
            if not file.is_file() or file.stat().st_size != size:
                return None
        files = with_present_times(group.files, files_of(self.source, number))
        if files != group.files:
            group = dataclasses.replace(group, files=files)
            save_group(group, group_file(self.folder, number))
        return self._entry(number, group)

    def clear(self, number: int) -> None:
        """Take away what is there of a group, its json first: from then on it is not done."""
        group_file(self.folder, number).unlink(missing_ok=True)
        for file in self.folder.glob(f"{number:05d}-*"):
            file.unlink()

    def save(
        self, number: int, counts: list[int], rows: list[Row], features: dict[str, int]
    ) -> dict[str, Any]:
        """Write a group's json, with which it is done; its entry in the index."""
        files = [list(describe(file)) for file in files_of(self.source, number)]
        group = Group(self.identity, files, counts, rows, features)
        save_group(group, group_file(self.folder, number))
        return self._entry(number, group)

    def _load(self, number: int) -> Group | None:
        file = group_file(self.folder, number)
        try:
            return load_group(file) if file.is_file() else None
        except DataError:
            return None

    def _entry(self, number: int, group: Group) -> dict[str, Any]:
        file = group_file(self.folder, number)
        return {
            "files": group.files,
            "written": group.features | {file.name: file.stat().st_size},
            "samples": len(group.rows),
            "bad": sum("cause" in row for row in group.rows),
        }


class _Work:
    """One data set's groups, shared out over the processes."""

    def __init__(
        self,
        cache: _Cache,
        towers: Towers,
        accelerator: Accelerator,
        processes: Distributed,
        batch_size: int,
        num_workers: int,
    ) -> None:
        self.cache, self.towers, self.device = cache, towers, accelerator.device
        self.processes = processes
        own = range(accelerator.process_index, cache.groups, accelerator.num_processes)
        self.entries = {number: cache.done(number) for number in own}
        self.todo = [number for number, entry in self.entries.items() if entry is None]
        batches = GroupBatches(cache.dataset, cache.source, self.todo, batch_size)
        self.loader = DataLoader(
            batches,
            batch_size=None,
            num_workers=num_workers if self.todo else 0,
            worker_init_fn=_leave_ctrl_c_to_the_main_process,
            pin_memory=self.device.type == "cuda",
        )

    def run(self) -> Figures:
        """Make what is missing, and the index over all."""
        cache, dataset = self.cache, self.cache.dataset
        figures, since = Figures(), time.monotonic()
        there = [entry["samples"] for entry in self.entries.values() if entry is not None]
        missing = self.processes.gather([(len(there), sum(there), len(self.todo))])
        figures.groups_before, figures.samples_before, todo = map(sum, zip(*missing, strict=True))
        if self.processes.main and figures.groups_before:
            text = "%s: %d of %d groups (%d samples) are there already"
            told = (figures.groups_before, cache.groups, figures.samples_before)
            logger.info(text, dataset.name, *told)
        if self.processes.main and todo:
            remove_index(cache.folder)
        work = self._encode()
        calm = 0.5 if sys.stderr.isatty() else 15.0  # seconds between redraws; few in a log file
        with (
            logging_redirect_tqdm(),
            tqdm(
                desc=dataset.name,
                total=dataset.source.units if dataset.length else None,
                initial=figures.samples_before,
                unit=" samples",
                disable=not self.processes.main,
                mininterval=calm,
            ) as bar,
        ):
            # The processes go in step, batch by batch, so that a lost one is noticed.
            while done := [n for n in self.processes.gather([next(work, None)]) if n is not None]:
                bar.update(sum(done))
        found = dict(self.processes.gather([*self.entries.items()]))
        entries = [found[number] for number in range(cache.groups)]
        if self.processes.main:
            save_index(Index(cache.identity, entries), cache.folder)
        figures.seconds = time.monotonic() - since
        figures.samples = sum(entry["samples"] for entry in entries)
        figures.bad = sum(entry["bad"] for entry in entries)
        figures.bytes = sum(sum(entry["written"].values()) for entry in entries)
        return figures

    def _encode(self) -> Iterator[int]:
        """Make this process's groups; after each batch, how many samples it had."""
        for number, batches in itertools.groupby(self.loader, key=lambda batch: batch.group):
            self.cache.clear(number)
            units = units_of(self.cache.source, number)
            counts = dict.fromkeys(units, 0)
            rows: list[Row] = []
            writer = _FeatureWriter(self.cache, number)
            for batch in batches:
                good = [row for row in batch.rows if "cause" not in row]
                if batch.batch is not None:
                    places = iter(self._keep(batch.batch, writer))
                    for row, count in zip(good, batch.batch["image_counts"], strict=True):
                        row["features"] = list(itertools.islice(places, count))
                rows += batch.rows
                for unit in batch.units:
                    counts[unit] += 1
                yield len(batch.rows)
            self.entries[number] = self.cache.save(
                number, list(counts.values()), rows, writer.close()
            )

    def _keep(self, batch: Batch, writer: "_FeatureWriter") -> list[tuple[str, int]]:
        """Have the features of a batch's images kept; where each of them will lie."""
        return writer.add(self._features(batch)) if sum(batch["image_counts"]) else []

    @torch.no_grad()
    def _features(self, batch: Batch) -> torch.Tensor:
        """What the towers make of a batch, on the CPU, in the dtype in which it is kept."""
        image = to_device(batch, self.device)["image"]
        with self.towers.autocast(self.device):
            features = self.towers.encode_frozen(image)
        kept = features.to(self.cache.dtype)
        if not kept.isfinite().all():
            bad = int(kept.flatten(1).isfinite().all(dim=1).logical_not().nonzero()[0, 0])
            fault = DataError(_overflow(keys_of_images(batch)[bad], features[bad]))
            fault.rank_local = True
            raise fault
        return kept.cpu()


def _overflow(key: str, features: torch.Tensor) -> str:
    if not features.isfinite().all():
        return f"{key}: the towers give Inf or NaN; compute in run.precision=bf16 or fp32"
    largest = features.abs().max().item()
    return f"{key}: features up to {largest:.3g} do not fit into fp16; use --dtype bf16"


class _FeatureWriter:
    """A group's features in files of bounded size."""

    def __init__(self, cache: _Cache, number: int) -> None:
        self._cache, self._number = cache, number
        self._held: list[torch.Tensor] = []
        self._rows = 0  # of those held
        self._written: dict[str, int] = {}

    def add(self, features: torch.Tensor) -> list[tuple[str, int]]:
        """Take features ``[n, Q, D]``; where each of them will lie."""
        each = features[0].numel() * features.element_size()
        if self._rows and (self._rows + len(features)) * each > _FILE_BYTES:
            self._write()
        first = self._rows
        self._held.append(features)
        self._rows += len(features)
        return [(self._name, first + i) for i in range(len(features))]

    def close(self) -> dict[str, int]:
        """Write the rest; every file with its bytes."""
        if self._rows:
            self._write()
        return self._written

    @property
    def _name(self) -> str:
        return f"{self._number:05d}-{len(self._written):03d}.safetensors"

    def _write(self) -> None:
        file = self._cache.folder / self._name
        save_features(torch.cat(self._held), file)
        self._written[file.name] = file.stat().st_size
        self._held, self._rows = [], 0


def _leave_ctrl_c_to_the_main_process(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
