"""What cached features depend on, recorded with them and compared before they are trained from.

The frozen towers, the image processor, the files of the data set. Not the language model: one cache
serves them all. Not the text processor: captions are cached as they are. A file is read again only
where its size or the time of its last change is another.
"""

import dataclasses
import functools
import hashlib
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from minigpt4.assembly import build_datasets, chosen_dtype
from minigpt4.datasets.feature_source import (
    ADVICE,
    CacheableSource,
    Index,
    files_of,
    group_count,
    groups_difference,
    load_index,
    uncacheable,
)
from minigpt4.datasets.samples import BadSample, DataSet, RawSample, read_sample, stack, to_device
from minigpt4.errors import DataError, Fault, MiniGPT4Error, one_line, shown
from minigpt4.models.build import build_minigpt4
from minigpt4.models.options import TowerOptions
from minigpt4.preflight.draft import Draft
from minigpt4.registry import MODELS, UnknownOptionError
from minigpt4.weights.download import cached

FORMAT = 2
_DIGEST = 20  # bytes
_WEIGHTS = ("vit_model", "q_former_model")
_OF_EVA = ("vit_model", "image_size", "visual_encoder")
_OF_Q_FORMER = ("q_former_model", "num_query_token", "q_former")
_SEEDS = 16  # with which a picture is processed: a transform that draws shows by one of them
_NEW = "run cache-features into another folder, or take features out"
_SHORT = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}

logger = logging.getLogger(__name__)


class FileFact(NamedTuple):
    """A file as a cache describes it; one that cannot be read has no digest, and -1 bytes."""

    name: str
    size: int
    mtime_ns: int
    digest: str


def describe(file: Path, before: FileFact | None = None) -> FileFact:
    """Return a file's facts; it is read unless it has the size and time that it had before."""
    try:
        status = os.stat(file)
        size, changed = status.st_size, status.st_mtime_ns
        same = before is not None and (before.size, before.mtime_ns) == (size, changed)
        digest = before.digest if before and same else _digest(file, size, changed)
    except OSError:  # of a shard it is a bad sample, and stays one
        return FileFact(file.name, -1, 0, "")
    return FileFact(file.name, size, changed, digest)


@functools.cache
def _digest(file: Path, _size: int, _mtime_ns: int) -> str:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_difference(recorded: Sequence[Sequence[Any]], files: Sequence[Path]) -> str | None:
    """Return the first of a group's files that is another than it was."""
    for fact, file in zip(map(FileFact._make, recorded), files, strict=False):
        if fact.name != file.name:
            return f"made of {fact.name}, where {file} is now"
        if describe(file, fact).digest != fact.digest:
            return f"{file} has changed since"
    if len(recorded) != len(files):
        return f"a group was made of {len(recorded)} files, and has {len(files)} now"
    return None


def identity_of(draft: Draft, dataset: DataSet, arithmetic: torch.dtype, dtype: torch.dtype) -> Any:
    """Return what the features of a data set depend on except its files, as JSON holds it.

    The towers compute in ``arithmetic``; features are kept in ``dtype``.
    """
    assert isinstance(dataset.source, CacheableSource)
    settings = _settings(draft.model)
    weights = {
        name: {"origin": value, "file": describe(cached(value))}
        for name, value in settings.items()
        if name in _WEIGHTS
    }
    return {
        "format": FORMAT,
        "towers": settings | weights,
        "image_processor": _processed(dataset, seed=0),
        "val_fraction": dataset.source.side.val_fraction,
        "arithmetic": _SHORT[arithmetic],
        "dtype": _SHORT[dtype],
    }


def _settings(model: TowerOptions) -> dict[str, Any]:
    """Return the settings of the model section that decide what the towers make of pixels."""
    unused = set() if model.has_qformer else set(_OF_Q_FORMER)
    # Another tower than EVA decides by its own options; without one there is no such key.
    unused |= {"vision_tower"} if model.vision_tower is None else set(_OF_EVA)
    names = [field.name for field in dataclasses.fields(TowerOptions) if field.name not in unused]
    values = {name: getattr(model, name) for name in names}
    if model.vision_tower is not None:
        values["vision_tower"] = model.vision_tower.options
    return {
        name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
        for name, value in values.items()
    }


def _same_weights(origin: str, recorded: Mapping[str, Any]) -> bool:
    file, before = cached(origin), FileFact(*recorded["file"])
    known = file.is_file()  # a URL need not be fetched
    return describe(file, before).digest == before.digest if known else recorded["origin"] == origin


@functools.cache
def _test_picture() -> bytes:
    """A picture of gradients and noise, not square, as a JPEG like those of the data sets."""
    height, width = 120, 200
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    noise = np.random.default_rng(0).uniform(0, 55, (height, width, 3))
    pixels = np.stack([x, y, (x + y) / 2], axis=-1) + noise
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def _processed(dataset: DataSet, seed: int) -> str:
    """Return a digest of what the image processor makes of one picture, on its way to the model."""
    wordless = replace(dataset, text_processor=str)
    sample = read_sample(RawSample("", _test_picture(), "text"), wordless, str(seed))
    if isinstance(sample, BadSample):
        raise DataError(f"a picture to try its image processor with gives {sample.reason}")
    batch = to_device(stack([sample], dataset), torch.device("cpu"))
    pixels = batch["image"].float().contiguous()
    content = str(list(pixels.shape)).encode() + pixels.numpy().tobytes()
    return hashlib.blake2b(content, digest_size=_DIGEST).hexdigest()


def _random_fault(dataset: DataSet) -> str | None:
    """Return a complaint about an image processor that draws."""
    drawn = getattr(dataset.image_processor, "random", False)
    if drawn or len({_processed(dataset, seed) for seed in range(_SEEDS)}) > 1:
        return (
            "its image processor is random: each pass sees other pixels, and a cache holds one of "
            "them; take one that is not (random_crop: False), or features out"
        )
    return None


def tower_faults(draft: Draft) -> Iterator[Fault]:
    """Yield why a model's features cannot be cached, or be trained from."""
    if trained := {"q_former", "query_tokens", "ln_vision"} & {*draft.model.trainable}:
        text = (
            f"{', '.join(sorted(trained))}: what is trained there changes the features at every "
            "step; with cached ones train llama_proj and lora alone"
        )
        yield Fault("model.trainable", text)
    arch = draft.checked.config.arch
    if arch in MODELS.names() and MODELS.get(arch) is not build_minigpt4:
        yield Fault("model.arch", f"{arch}: only features of minigpt4's own towers can be cached")


def check_cacheable(datasets: Sequence[DataSet]) -> None:
    """Check data sets before anything is computed.

    Raises:
        DataError: for a random image processor, or a source of an unknown kind.
    """
    for dataset in datasets:
        known = isinstance(dataset.source, CacheableSource)
        if complaint := _random_fault(dataset) if known else uncacheable(dataset):
            raise DataError(f"datasets.{dataset.name}: {complaint}")


def feature_faults(draft: Draft) -> Iterator[Fault]:
    """Yield caches that are not complete, are damaged, or were made of something else."""
    faults = [*tower_faults(draft)]
    yield from faults
    for name, bound in draft.checked.datasets.items():
        features = getattr(bound.options, "features", None)
        if faults or not features:
            continue
        folder, alone = Path(features) / name, replace(draft.checked, datasets={name: bound})
        try:
            (dataset,) = build_datasets(alone, images=True)
        except (MiniGPT4Error, UnknownOptionError):
            continue  # where a key is wrong, the error is reported already
        try:
            complaint = _random_fault(dataset) or _cache_fault(draft, dataset, folder)
        except MiniGPT4Error as error:
            complaint = str(error)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            complaint = f"{folder}: damaged ({type(error).__name__}: {one_line(error)}); {ADVICE}"
        if complaint:
            yield Fault(f"datasets.{name}.features", complaint)


def _cache_fault(draft: Draft, dataset: DataSet, folder: Path) -> str | None:
    if not isinstance(dataset.source, CacheableSource):
        return uncacheable(dataset)
    index = load_index(folder, group_count(dataset.source))
    difference = identity_difference(index.identity, draft, dataset)
    difference = difference or _data_difference(index, dataset.source)
    if difference:
        return f"{folder}: {difference}; {_NEW}"
    _tell_rounding(draft, index.identity, dataset.name)
    for number, group in enumerate(index.groups):
        for name, size in group["written"].items():
            file = folder / name
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                there = "not there" if found is None else f"damaged ({found} of {size} bytes)"
                return f"{file} (group {number}): {there}; {ADVICE}"
    return None


def identity_difference(recorded: Mapping[str, Any], draft: Draft, dataset: DataSet) -> str | None:
    """Return what is another now than when features were computed; None where nothing is."""
    towers = recorded["towers"]
    for name, value in _settings(draft.model).items():
        before = towers.get(name)
        if name in _WEIGHTS:
            if before is None or not _same_weights(value, before):
                made_of = "none" if before is None else before["origin"]
                return f"made with another {name} ({made_of}, now {value})"
        elif before != value:
            return f"made with model.{name} {shown(before)}, now {shown(value)}"
    if recorded["format"] != FORMAT:
        return f"of format {recorded['format']}, this program writes {FORMAT}"
    if recorded["image_processor"] != _processed(dataset, seed=0):
        return "made with another image processor: it gives other pixels (size, mean, std, resize)"
    assert isinstance(dataset.source, CacheableSource)
    before, now = recorded.get("val_fraction", 0.0), dataset.source.side.val_fraction
    if before != now:
        return f"made with val_fraction {before}, now {now}: of other samples"
    return None


def _data_difference(index: Index, source: CacheableSource) -> str | None:
    """Return the first file that is another than when its group was cached."""
    if difference := groups_difference(index, source):
        return difference
    groups = [(group["files"], files_of(source, n)) for n, group in enumerate(index.groups)]
    pairs = [pair for facts, files in groups for pair in zip(facts, files, strict=False)]
    times = {file: FileFact(*fact).mtime_ns for fact, file in pairs if file.is_file()}
    touched = [file for file, before in times.items() if file.stat().st_mtime_ns != before]
    if touched:
        text = (
            "%d files (first: %s) were touched since their features were computed: their content "
            "is compared; cache-features once more notes their new times"
        )
        logger.info(text, len(touched), touched[0])
    return next(filter(None, (files_difference(*group) for group in groups)), None)


def _tell_rounding(draft: Draft, recorded: Mapping[str, Any], name: str) -> None:
    """Log one line where the run computes otherwise: losses then differ by rounding."""
    if draft.device is None:
        return
    run = _SHORT[chosen_dtype(draft.checked, torch.device(draft.device))]
    kept = recorded["dtype"]
    if run != recorded["arithmetic"] or kept not in (run, "fp32"):
        text = "datasets.%s.features: computed in %s and kept in %s, this run computes in %s: "
        text += "losses differ by rounding from those of the pictures themselves"
        logger.info(text, name, recorded["arithmetic"], kept, run)
