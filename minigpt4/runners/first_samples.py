"""First samples: whether a data set holds what a training reads, tried on one of its samples."""

import itertools
import os
from pathlib import Path

from minigpt4.datasets.alignment import AlignmentSource
from minigpt4.datasets.builders import FolderStorage, ShardStorage
from minigpt4.datasets.features import CachedFeatures
from minigpt4.datasets.images import load_image
from minigpt4.datasets.pairs import open_storage
from minigpt4.datasets.samples import BadSample, RawSample, Source, text_fault
from minigpt4.datasets.shards import ShardSource, list_shards
from minigpt4.errors import DataError
from minigpt4.registry import Fault
from minigpt4.runners.plan import Plan

# A few broken samples are skipped in a training too; so many at the start are a wrong data set.
_TRIED = 100
_OF_PAIRS = ("storage", "image_root")  # what says where rows and their images lie


def sample_faults(plan: Plan) -> list[Fault]:
    """Data sets without a readable pair at the start of their first shard, or of their folder."""
    faults = []
    for name, entry in plan.datasets.items():
        if plan.purpose == "training" and entry.get("features") is not None:
            continue  # its pictures are not read
        storage = entry.get("build_info")
        try:
            if isinstance(storage, ShardStorage):
                shard = next(filter(os.path.isfile, list_shards(storage.storage)))
                _read_one(shard, ShardSource([shard], 1))
            elif isinstance(storage, FolderStorage):
                _read_one(storage.storage, AlignmentSource(Path(storage.storage)))
            elif plan.config.builder_of(name) == "pairs" and {*_OF_PAIRS} <= {*entry}:
                rows, root = (entry[key] for key in _OF_PAIRS)
                _read_one(str(rows), open_storage(rows, root))
        except DataError as error:
            faults.append(Fault(f"datasets.{name}", str(error)))
    return faults


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
