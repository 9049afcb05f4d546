"""Options that all data sets share, and how their sections become data sets."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from minigpt4.config.checks import Positive, check_not_negative, check_share
from minigpt4.datasets.samples import ALL, BadSample, DataSet, Side, Source
from minigpt4.errors import ConfigError, DataError
from minigpt4.registry import IMAGE_PROCESSORS, TEXT_PROCESSORS, Bound


def _check_train(specs: dict[str, Any]) -> str | None:
    return None if "train" in specs else "no 'train' in it: the processor of the training split"


# split → {"name": …, option: …}
Split = Literal["train", "eval", "val", "test"]
ImageProcessors = Annotated[dict[Split, Annotated[Bound, IMAGE_PROCESSORS]], _check_train]
TextProcessors = Annotated[dict[Split, Annotated[Bound, TEXT_PROCESSORS]], _check_train]
# Names in use for an evaluation's split; the first that is there counts.
_EVAL_SPLITS: tuple[Split, ...] = ("eval", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Where samples are, and which of them are the validation set."""

    storage: Any
    val_storage: Any = None
    val_fraction: Annotated[float, check_share] = 0.0


def training_processor(name: str) -> Any:
    """Return the default of processors: one for the training split."""
    return {"train": {"name": name}}


@dataclass(frozen=True, kw_only=True)
class DataSetOptions:
    """Options of every data set in files; a check can look into these without building it.

    Attributes:
        vis_processor: Image processor of each split; an evaluation takes "eval", "val" or "test"
            where there is one, else "train".
        sample_ratio: Relative weight with which a step samples this data set.
        batch_size: Samples per process of a step on this data set; the run's without.
        features: Folder of ``cache-features``, to train from what the frozen towers made of the
            images; an evaluation reads the images themselves.
    """

    vis_processor: ImageProcessors = field(
        default_factory=partial(training_processor, "blip2_image_train")
    )
    sample_ratio: Annotated[float, check_not_negative] = 1.0
    batch_size: Positive | None = None
    features: str | None = None

    @property
    def stored(self) -> Storage:
        """Where the samples are: in the section ``build_info``, or in these options."""
        return self if isinstance(self, Storage) else self.build_info  # type: ignore[attr-defined]

    @property
    def is_endless(self) -> bool:
        """Whether the training streams without a known length."""
        return False

    def open(self, storage: Any, side: Side = ALL) -> Source:
        """Return the samples of a storage; ``length`` is the number of good ones, if known."""
        raise NotImplementedError

    def open_first(self, storage: Any) -> tuple[str, Source]:
        """Return name and samples of the first part of a storage."""
        return str(storage), self.open(storage)


def build_dataset(
    name: str,
    options: DataSetOptions,
    text_processor: Callable[[str], str],
    missing: tuple[BadSample, ...] = (),
) -> DataSet:
    """Return the data set of these options; a wrong validation set is a ``MiniGPT4Error``."""
    stored, processors = options.stored, options.vis_processor
    if fault := validation_set_fault(stored):
        raise ConfigError(f"datasets.{name}: {fault}")
    share, held_out = stored.val_fraction, None
    source = options.open(stored.storage, Side("train", share) if share else ALL)
    if share:
        held_out = options.open(stored.storage, Side("val", share))
    elif stored.val_storage is not None:
        held_out = options.open(stored.val_storage)
    length = getattr(source, "length", None)
    if length == 0:
        raise DataError(f"datasets.{name}: no good row is left to train on beside val_fraction")
    evaluation = next((processors[split] for split in _EVAL_SPLITS if split in processors), None)
    dataset = DataSet(
        name,
        source,
        processors["train"].build(),
        text_processor,
        options.sample_ratio,
        length=length,
        batch_size=options.batch_size,
        eval_image_processor=evaluation.build() if evaluation else None,
        eval_source=held_out,
        missing=missing,
    )
    if options.features is None:
        return dataset
    from minigpt4.datasets.feature_source import CacheableSource, FeatureSource

    assert isinstance(source, CacheableSource)
    return replace(dataset, source=FeatureSource(source, Path(options.features) / name))


def validation_set_fault(stored: Storage) -> str | None:
    """Return what is wrong with two settings that each name a validation set."""
    if stored.val_storage is not None and stored.val_fraction:
        return "val_storage and val_fraction both name what to leave out; take one of them"
    return None
