"""First samples: whether a data set holds what a training reads, tried on one of its samples."""

import itertools
from collections.abc import Iterator

from minigpt4.datasets.features import CachedFeatures
from minigpt4.datasets.images import load_image
from minigpt4.datasets.options import Stored
from minigpt4.datasets.samples import BadSample, RawSample, Source, text_fault
from minigpt4.errors import DataError
from minigpt4.preflight.draft import Draft
from minigpt4.registry import Fault, UnknownOptionError

# A few broken samples are skipped in a training too; so many at the start are a wrong data set.
_TRIED = 100


def sample_faults(draft: Draft) -> Iterator[Fault]:
    """Yield data sets without a readable sample at the start of their first shard, or folder.

    Likewise of their validation set.
    """
    for name, bound in draft.checked.datasets.items():
        try:
            yield from _of_data_set(draft, name, bound.options)
        except UnknownOptionError:
            continue


def _of_data_set(draft: Draft, name: str, options: object) -> Iterator[Fault]:
    if not isinstance(options, Stored):
        return  # a plug-in's
    cached = draft.purpose == "training" and getattr(options, "features", None) is not None
    # Of cached features the images are not read.
    read = [] if cached else [options.stored.storage]
    for storage in (*read, options.stored.val_storage):
        try:
            if storage is not None:
                _read_one(*options.open_first(storage))
        except DataError as error:
            yield Fault(f"datasets.{name}", str(error))


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
