"""First samples: whether a data set holds what a training reads, tried on one of its samples."""

import itertools
import os
from pathlib import Path
from typing import Any

from minigpt4.datasets.caption_shards import ShardSource, list_shards
from minigpt4.datasets.cc_sbu_align import AlignmentSource
from minigpt4.datasets.features import CachedFeatures
from minigpt4.datasets.images import load_image
from minigpt4.datasets.options import FolderStorage, ShardStorage
from minigpt4.datasets.own_rows.pairs import open_storage
from minigpt4.datasets.samples import BadSample, RawSample, Source, text_fault
from minigpt4.errors import DataError
from minigpt4.preflight.plan import Plan
from minigpt4.registry import Fault

# A few broken samples are skipped in a training too; so many at the start are a wrong data set.
_TRIED = 100


def sample_faults(plan: Plan) -> list[Fault]:
    """Data sets without a readable pair at the start of their first shard, or of their folder.

    Likewise of what they hold out.
    """
    faults = []
    for name, entry in plan.datasets.items():
        cached = plan.purpose == "training" and entry.get("features") is not None
        for key in ("storage", "val_storage"):
            if cached and key == "storage":
                continue  # its pictures are not read
            try:
                if found := _open(plan, name, entry, key):
                    _read_one(*found)
            except DataError as error:
                faults.append(Fault(f"datasets.{name}", str(error)))
    return faults


def _open(plan: Plan, name: str, entry: dict[str, Any], key: str) -> tuple[str, Source] | None:
    """A storage's name and samples; None where it is not named, or a plug-in's."""
    stored = entry.get("build_info")
    if isinstance(stored, ShardStorage | FolderStorage):
        storage = getattr(stored, key)
        if storage is None:
            return None
        if isinstance(stored, FolderStorage):
            return str(storage), AlignmentSource(Path(storage))
        shard = next(filter(os.path.isfile, list_shards(storage)))
        return shard, ShardSource([shard], 1)
    if plan.config.builder_of(name) == "pairs" and {key, "image_root"} <= {*entry}:
        rows, root = entry[key], entry["image_root"]
        return None if rows is None else (str(rows), open_storage(rows, root))
    return None


def _read_one(origin: str, source: Source) -> None:
    """Read up to the first good sample.

    Raises:
        DataError: when there is none; it says what is the matter with the first.
    """
    first = None
    samples = itertools.chain.from_iterable(map(source.read, range(source.units)))
    for sample in itertools.islice(samples, _TRIED):
        reason = _complaint(sample)
        if reason is None:
            return
        first = first or f"{sample.key}: {reason}"
    raise DataError(f"no readable sample at the start of {origin}; the first: {first}")


def _complaint(sample: RawSample | BadSample) -> str | None:
    if isinstance(sample, BadSample):
        return sample.reason
    try:
        if fault := text_fault(sample.text):
            return ": ".join(fault)
        for image in sample.images:
            assert not isinstance(image, CachedFeatures)
            load_image(image)
    except DataError as error:
        return str(error)
    return None
