"""Builders: the ``datasets:`` section of a YAML → data sets."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from minigpt4.checks import Positive, check_folder, check_not_negative, check_share
from minigpt4.datasets.alignment import AlignmentSource, check_alignment_folder
from minigpt4.datasets.feature_source import with_features
from minigpt4.datasets.pairs import ListSource, check_storage, names_shards, open_storage
from minigpt4.datasets.row_source import RowSource
from minigpt4.datasets.samples import BadSample, DataSet, ToPixels
from minigpt4.datasets.shards import ShardSource, check_shards, list_shards
from minigpt4.datasets.splits import Side
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


@dataclass(frozen=True)
class ShardStorage:
    """Where shards lie: a pattern with braces, a folder, or a list of these."""

    storage: Annotated[str | list[str], check_shards]


@dataclass(frozen=True)
class FolderStorage:
    """The folder that holds ``filter_cap.json`` and ``image/``."""

    storage: Annotated[str, check_alignment_folder]


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
    existing = [shard for shard in list_shards(build_info.storage) if Path(shard).is_file()]
    dataset = DataSet(
        name,
        ShardSource(existing, buffer_size),
        build_named(IMAGE_PROCESSORS, vis_processor["train"]),
        build_named(TEXT_PROCESSORS, text_processor["train"]),
        sample_ratio,
        batch_size=batch_size,
        eval_image_processor=_eval_image_processor(vis_processor),
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
    if val_storage is not None and val_fraction:
        raise ConfigError(
            f"datasets.{name}: val_storage and val_fraction both name what to leave out"
        )
    part: Literal["all", "train"] = "train" if val_fraction else "all"
    source = open_storage(storage, image_root, Side(part, val_fraction))
    held_out = None
    if val_storage is not None:
        held_out = open_storage(val_storage, image_root)
    elif val_fraction:
        held_out = open_storage(storage, image_root, Side("val", val_fraction))
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
    source = AlignmentSource(Path(build_info.storage))
    dataset = DataSet(
        name,
        source,
        build_named(IMAGE_PROCESSORS, vis_processor["train"]),
        str,
        sample_ratio,
        length=source.readable,
        batch_size=batch_size,
        eval_image_processor=_eval_image_processor(vis_processor),
    )
    return with_features(dataset, features)
