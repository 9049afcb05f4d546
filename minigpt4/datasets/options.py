"""Builders: the ``datasets:`` section of a YAML → data sets."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from minigpt4.config.checks import Positive, check_folder, check_not_negative, check_share
from minigpt4.datasets.caption_shards import ShardSource, check_shards, list_shards
from minigpt4.datasets.cc_sbu_align import AlignmentSource, check_alignment_folder
from minigpt4.datasets.feature_source import with_features
from minigpt4.datasets.own_rows.pairs import (
    ListSource,
    RowSource,
    check_storage,
    names_shards,
    open_storage,
)
from minigpt4.datasets.samples import BadSample, DataSet, Source, ToPixels
from minigpt4.datasets.splits import ALL, Side
from minigpt4.errors import ConfigError
from minigpt4.registry import BUILDERS, IMAGE_PROCESSORS, TEXT_PROCESSORS, Hidden, build_named


def _check_train(specs: dict[str, Any]) -> str | None:
    return None if "train" in specs else "no 'train' in it: the processor of the training split"


# split → {"name": …, option: …}
Split = Literal["train", "eval", "val", "test"]
ImageProcessors = Annotated[dict[Split, Annotated[dict[str, Any], IMAGE_PROCESSORS]], _check_train]
TextProcessors = Annotated[dict[Split, Annotated[dict[str, Any], TEXT_PROCESSORS]], _check_train]
SampleRatio = Annotated[float, check_not_negative]
_EVAL_SPLITS: tuple[Split, ...] = (
    "eval",
    "val",
    "test",
)  # names for it in use; the first that is there counts

_DEFAULT_IMAGES: ImageProcessors = {"train": {"name": "blip2_image_train"}}
_DEFAULT_CAPTIONS: TextProcessors = {"train": {"name": "blip_caption"}}
_PLAIN_TEXTS: TextProcessors = {"train": {"name": "plain_text"}}

logger = logging.getLogger(__name__)
_S = TypeVar("_S", bound=Source)


@dataclass(frozen=True)
class ShardStorage:
    """Where shards lie: a pattern with braces, a folder, or a list of these.

    Attributes:
        storage: What a training reads.
        val_storage: What is held out: shards that a validation or an evaluation reads.
        val_fraction: Or the share of the samples that is held out, drawn by their keys. A
            validation then goes through all shards for it.
    """

    storage: Annotated[str | list[str], check_shards]
    val_storage: Annotated[str | list[str], check_shards] | None = None
    val_fraction: Annotated[float, check_share] = 0.0


@dataclass(frozen=True)
class FolderStorage:
    """The folder that holds ``filter_cap.json`` and ``image/``.

    Attributes:
        storage: What a training reads.
        val_storage: What is held out: the folder that a validation or an evaluation reads.
        val_fraction: Or the share of the pairs that is held out, drawn by their pictures' names.
    """

    storage: Annotated[str, check_alignment_folder]
    val_storage: Annotated[str, check_alignment_folder] | None = None
    val_fraction: Annotated[float, check_share] = 0.0


@dataclass(frozen=True)
class PairStorage:
    """A user's own rows, with what is held out of them; see :func:`build_pairs`."""

    storage: str | list[str]
    val_storage: str | list[str] | None
    val_fraction: float


def _eval_image_processor(specs: dict[Split, dict[str, Any]]) -> ToPixels | None:
    """The image processor that the YAML names for an evaluation, if it does."""
    split = next((split for split in _EVAL_SPLITS if split in specs), None)
    return build_named(IMAGE_PROCESSORS, specs[split]) if split else None


def _missing_shards(name: str, storage: str | list[str]) -> tuple[BadSample, ...]:
    """The shards that are named and not there, told in one line."""
    shards = list_shards(storage)
    missing = [shard for shard in shards if not Path(shard).is_file()]
    if missing:
        text = "datasets.%s: %d of %d shards are missing (first: %s)"
        logger.warning(text, name, len(missing), len(shards), missing[0])
    return tuple(BadSample(shard, "missing shard", shard=shard) for shard in missing)


def _split(
    name: str, stored: ShardStorage | FolderStorage | PairStorage, read: Callable[[Any, Side], _S]
) -> tuple[_S, _S | None]:
    """What a training reads, and what is held out, if anything is.

    Raises:
        ConfigError: where two settings name what is held out.
    """
    if fault := held_out_fault(stored.val_storage, stored.val_fraction):
        raise ConfigError(f"datasets.{name}: {fault}")
    if stored.val_storage is not None:
        return read(stored.storage, ALL), read(stored.val_storage, ALL)
    if not stored.val_fraction:
        return read(stored.storage, ALL), None
    sides = (Side("train", stored.val_fraction), Side("val", stored.val_fraction))
    training, held_out = (read(stored.storage, side) for side in sides)
    return training, held_out


def held_out_fault(val_storage: Any, val_fraction: float) -> str | None:
    """What is wrong with two settings that each name what to hold out."""
    if val_storage is not None and val_fraction:
        return "val_storage and val_fraction both name what to leave out; take one of them"
    return None


@BUILDERS.register("laion")
@BUILDERS.register("cc_sbu")
def build_caption_shards(
    name: Annotated[str, Hidden],
    build_info: ShardStorage,
    vis_processor: ImageProcessors = _DEFAULT_IMAGES,
    text_processor: TextProcessors = _DEFAULT_CAPTIONS,
    sample_ratio: SampleRatio = 1.0,
    batch_size: Positive | None = None,
    buffer_size: Positive = 1000,
    data_type: Literal["images"] = "images",
    features: str | None = None,
) -> DataSet:
    """Image-caption pairs in webdataset shards (stage 1).

    Args:
        name: The data set's name in the YAML.
        build_info: Where the shards lie.
        vis_processor: Image processor of each split; an evaluation takes "eval", "val" or "test"
            where there is one, else "train".
        text_processor: Caption processor of each split.
        sample_ratio: Relative weight with which a step draws this data set.
        batch_size: Samples per process of a step on this data set; the run's without.
        buffer_size: Consecutive samples of each reader that are shuffled together.
        data_type: As in the original; only images exist.
        features: Folder of ``cache-features``, to train from what the frozen towers made of the
            pictures; an evaluation reads the pictures themselves.
    """
    missing = _missing_shards(name, build_info.storage)

    def read(storage: str | list[str], side: Side) -> ShardSource:
        existing = [shard for shard in list_shards(storage) if Path(shard).is_file()]
        return ShardSource(existing, buffer_size, side=side)

    source, held_out = _split(name, build_info, read)
    dataset = DataSet(
        name,
        source,
        build_named(IMAGE_PROCESSORS, vis_processor["train"]),
        build_named(TEXT_PROCESSORS, text_processor["train"]),
        sample_ratio,
        batch_size=batch_size,
        eval_image_processor=_eval_image_processor(vis_processor),
        eval_source=held_out,
        missing=missing,
    )
    return with_features(dataset, features)


@BUILDERS.register("pairs")
def build_pairs(
    name: Annotated[str, Hidden],
    storage: Annotated[str | list[str], check_storage],
    val_storage: Annotated[str | list[str], check_storage] | None = None,
    val_fraction: Annotated[float, check_share] = 0.0,
    image_root: Annotated[str, check_folder] | None = None,
    vis_processor: ImageProcessors = _DEFAULT_IMAGES,
    text_processor: TextProcessors = _PLAIN_TEXTS,
    sample_ratio: SampleRatio = 1.0,
    batch_size: Positive | None = None,
    features: str | None = None,
) -> DataSet:
    """A user's own rows: images with captions, instructions and answers, or conversations.

    Args:
        name: The data set's name in the YAML.
        storage: jsonl, json, csv or tsv file; folder of pictures with texts beside them, with a
            metadata.jsonl or .csv, or of the form of cc_sbu_align; shards.
        val_storage: Rows that an evaluation reads instead, of any of these forms.
        val_fraction: Share of the rows that an evaluation reads and a training does not, drawn by
            their images; 0: both read all.
        image_root: Folder that the rows' paths begin in, and which none may leave; without it that
            of the file.
        vis_processor: Image processor of each split; an evaluation takes "eval", "val" or "test"
            where there is one, else "train".
        text_processor: Of captions, by split; other words reach the model as they are.
        sample_ratio: Relative weight with which a step draws this data set.
        batch_size: Samples per process of a step on this data set; the run's without.
        features: Folder of ``cache-features``, to train from what the frozen towers made of the
            pictures; an evaluation reads the pictures themselves.
    """
    source, held_out = _split(
        name,
        PairStorage(storage, val_storage, val_fraction),
        lambda rows, side: open_storage(rows, image_root, side),
    )
    length = source.length if isinstance(source, RowSource | ListSource) else None
    if length is not None and length < source.units:
        text = "datasets.%s: %d of %d rows cannot be used; check-data lists them"
        logger.warning(text, name, source.units - length, source.units)
    dataset = DataSet(
        name,
        source,
        build_named(IMAGE_PROCESSORS, vis_processor["train"]),
        build_named(TEXT_PROCESSORS, text_processor["train"]),
        sample_ratio,
        length=length,
        batch_size=batch_size,
        eval_image_processor=_eval_image_processor(vis_processor),
        eval_source=held_out,
        missing=_missing_shards(name, storage) if names_shards(storage) else (),
    )
    return with_features(dataset, features)


@BUILDERS.register("cc_sbu_align")
def build_cc_sbu_align(
    name: Annotated[str, Hidden],
    build_info: FolderStorage,
    vis_processor: ImageProcessors = _DEFAULT_IMAGES,
    text_processor: TextProcessors | None = None,
    sample_ratio: SampleRatio = 1.0,
    batch_size: Positive | None = None,
    data_type: Literal["images"] = "images",
    features: str | None = None,
) -> DataSet:
    """Curated image-description pairs in a folder (stage 2).

    Args:
        name: The data set's name in the YAML.
        build_info: Where the folder lies.
        vis_processor: Image processor of each split; an evaluation takes "eval", "val" or "test"
            where there is one, else "train".
        text_processor: Accepted because the original's YAML names one; as there, descriptions
            reach the model unprocessed.
        sample_ratio: Relative weight with which a step draws this data set.
        batch_size: Samples per process of a step on this data set; the run's without.
        data_type: As in the original; only images exist.
        features: Folder of ``cache-features``, to train from what the frozen towers made of the
            pictures; an evaluation reads the pictures themselves.
    """
    source, held_out = _split(
        name, build_info, lambda folder, side: AlignmentSource(Path(folder), side)
    )
    dataset = DataSet(
        name,
        source,
        build_named(IMAGE_PROCESSORS, vis_processor["train"]),
        str,
        sample_ratio,
        length=source.readable,
        batch_size=batch_size,
        eval_image_processor=_eval_image_processor(vis_processor),
        eval_source=held_out,
    )
    return with_features(dataset, features)
