"""What cached features depend on, recorded with them and compared before they are trained from.

The frozen towers, the image processor, the files of the data set. Not the language model: one cache
serves them all. Not the text processor: captions are cached as they are.
"""

import dataclasses
import functools
import hashlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    load_index,
    uncacheable,
)
from minigpt4.datasets.samples import BadSample, DataSet, RawSample, read_sample, stack, to_device
from minigpt4.errors import DataError, MiniGPT4Error, one_line, shown
from minigpt4.models.build import build_minigpt4
from minigpt4.models.options import TowerOptions
from minigpt4.preflight.draft import Draft
from minigpt4.preflight.file_facts import DIGEST, FileFact, describe, files_difference, has_content
from minigpt4.registry import MODELS, Fault, UnknownOptionError
from minigpt4.weights.download import cached

_FORMAT = 2
_WEIGHTS = ("vit_model", "q_former_model")
_OF_EVA = ("vit_model", "image_size", "visual_encoder")
_OF_Q_FORMER = ("q_former_model", "num_query_token", "q_former")
_SEEDS = 16  # with which a picture is processed: a transform that draws shows by one of them
_NEW = "run cache-features into another folder, or take features out"

logger = logging.getLogger(__name__)


def identity_of(draft: Draft, dataset: DataSet, arithmetic: torch.dtype, dtype: torch.dtype) -> Any:
    """What the features of a data set depend on but its files, as json holds it.

    Args:
        draft: The checked config.
        dataset: With its pictures.
        arithmetic: In which the towers compute.
        dtype: In which features are kept.
    """
    weights = {
        name: {"origin": value, "file": describe(cached(value))}
        for name, value in _settings(draft.model).items()
        if name in _WEIGHTS
    }
    return {
        "format": _FORMAT,
        "towers": _settings(draft.model) | weights,
        "image_processor": _processed(dataset, seed=0),
        "val_fraction": _val_fraction(dataset),
        "arithmetic": _short(arithmetic),
        "dtype": _short(dtype),
    }


def _settings(model: TowerOptions) -> dict[str, Any]:
    """Settings of the model section that decide what the towers make of pixels."""
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


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]


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
    """A digest of what the image processor makes of one picture, on its way to the model."""
    wordless = dataclasses.replace(dataset, text_processor=str)
    sample = read_sample(RawSample("", _test_picture(), "text"), wordless, str(seed))
    if isinstance(sample, BadSample):
        raise DataError(f"a picture to try its image processor with gives {sample.reason}")
    batch = to_device(stack([sample], dataset), torch.device("cpu"))
    pixels = batch["image"].float().contiguous()
    told = hashlib.blake2b(str(list(pixels.shape)).encode(), digest_size=DIGEST)
    told.update(pixels.numpy().tobytes())
    return told.hexdigest()


def random_fault(dataset: DataSet) -> str | None:
    """Complaint about an image processor that draws."""
    drawn = getattr(dataset.image_processor, "random", False)
    if drawn or len({_processed(dataset, seed) for seed in range(_SEEDS)}) > 1:
        return (
            "its image processor is random: each pass sees other pixels, and a cache holds one of "
            "them; take one that is not (random_crop: False), or features out"
        )
    return None


def tower_faults(draft: Draft) -> list[Fault]:
    """Why a model's features cannot be cached, or be trained from."""
    trained = {"q_former", "query_tokens", "ln_vision"} & {*draft.model.trainable}
    faults = []
    if trained:
        text = (
            f"{', '.join(sorted(trained))}: what is trained there changes the features at every "
            "step; with cached ones train llama_proj and lora alone"
        )
        faults.append(Fault("model.trainable", text))
    arch = draft.checked.config.arch
    if arch in MODELS.names() and MODELS.get(arch) is not build_minigpt4:
        text = f"{arch}: only features of minigpt4's own towers can be cached"
        faults.append(Fault("model.arch", text))
    return faults


def check_cacheable(datasets: Sequence[DataSet]) -> None:
    """Hold data sets, before anything is computed.

    Raises:
        DataError: for a random image processor, or a source of an unknown kind.
    """
    for dataset in datasets:
        known = isinstance(dataset.source, CacheableSource)
        if complaint := random_fault(dataset) if known else uncacheable(dataset):
            raise DataError(f"datasets.{dataset.name}: {complaint}")


def feature_faults(draft: Draft) -> list[Fault]:
    """Caches that are not finished, damaged, or were made of something else."""
    bound = draft.checked.datasets.items()
    named = {n: b.options.features for n, b in bound if getattr(b.options, "features", None)}
    faults = tower_faults(draft) if named else []
    if faults:
        return faults
    for dataset in _data_sets(draft, named):
        folder = Path(named[dataset.name]) / dataset.name
        try:
            complaint = random_fault(dataset) or _cache_fault(draft, dataset, folder)
        except MiniGPT4Error as error:
            complaint = str(error)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            complaint = f"{folder}: damaged ({type(error).__name__}: {one_line(error)}); {ADVICE}"
        if complaint:
            faults.append(Fault(f"datasets.{dataset.name}.features", complaint))
    return faults


def _data_sets(draft: Draft, names: Iterable[str]) -> Iterator[DataSet]:
    """Data sets with their pictures, as far as they can be built."""
    for name in names:
        alone = {name: draft.checked.datasets[name]}
        try:
            yield from build_datasets(dataclasses.replace(draft.checked, datasets=alone), True)
        except (MiniGPT4Error, UnknownOptionError):
            continue  # where a key is wrong, the error is reported already


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
    """What is another now than when features were computed; None where nothing is."""
    towers = recorded["towers"]
    for name, value in _settings(draft.model).items():
        before = towers.get(name)
        if name in _WEIGHTS:
            if before is None or not _same_weights(value, before):
                told = "none" if before is None else before["origin"]
                return f"made with another {name} ({told}, now {value})"
        elif before != value:
            return f"made with model.{name} {shown(before)}, now {shown(value)}"
    if recorded["format"] != _FORMAT:
        return f"of format {recorded['format']}, this program writes {_FORMAT}"
    if recorded["image_processor"] != _processed(dataset, seed=0):
        return "made with another image processor: it gives other pixels (size, mean, std, resize)"
    before, now = recorded.get("val_fraction", 0.0), _val_fraction(dataset)
    if before != now:
        return f"made with val_fraction {before}, now {now}: of other samples"
    return None


def _val_fraction(dataset: DataSet) -> float:
    """Share of the data set's pictures that its training does not read."""
    assert isinstance(dataset.source, CacheableSource)
    return dataset.source.side.val_fraction


def _same_weights(origin: str, recorded: Mapping[str, Any]) -> bool:
    file = cached(origin)
    if not file.is_file():  # a URL, which need not be fetched
        return bool(recorded["origin"] == origin)
    return has_content(file, FileFact(*recorded["file"]))


def _data_difference(index: Index, source: CacheableSource) -> str | None:
    """The first file that is another than when its group was cached."""
    found, wanted = len(index.groups), group_count(source)
    if found != wanted:
        return f"made of {found} groups of files, this data set has {wanted}"
    _tell_touched(index, source)
    for number, group in enumerate(index.groups):
        if difference := files_difference(group["files"], files_of(source, number)):
            return difference
    return None


def _tell_touched(index: Index, source: CacheableSource) -> None:
    """One line before files are read because the time of their last change is another."""
    facts = [FileFact(*fact) for group in index.groups for fact in group["files"]]
    files = [file for group in range(group_count(source)) for file in files_of(source, group)]
    touched = {
        file: fact.size
        for fact, file in zip(facts, files, strict=False)
        if file.is_file() and file.stat().st_mtime_ns != fact.mtime_ns
    }
    if touched:
        text = (
            "%d files (%.1f GB; first: %s) were touched since their features were computed: their "
        )
        text += "content is compared; cache-features once more notes their new times"
        logger.info(text, len(touched), sum(touched.values()) / 1e9, next(iter(touched)))


def _tell_rounding(draft: Draft, recorded: Mapping[str, Any], name: str) -> None:
    """One line where the run computes otherwise: losses then differ by rounding."""
    if draft.device is None:
        return
    run = _short(chosen_dtype(draft.checked, torch.device(draft.device)))
    kept = recorded["dtype"]
    if run != recorded["arithmetic"] or kept not in (run, "fp32"):
        text = "datasets.%s.features: computed in %s and kept in %s, this run computes in %s: "
        text += "losses differ by rounding from those of the pictures themselves"
        logger.info(text, name, recorded["arithmetic"], kept, run)
