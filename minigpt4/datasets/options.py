"""Options that all data sets share, and how their sections become data sets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, Protocol, TypeVar, runtime_checkable

from minigpt4.config.checks import Positive, check_not_negative
from minigpt4.datasets.samples import BadSample, DataSet, Source
from minigpt4.datasets.splits import ALL, Side
from minigpt4.errors import ConfigError
from minigpt4.registry import IMAGE_PROCESSORS, TEXT_PROCESSORS, Bound


def _check_train(specs: dict[str, Any]) -> str | None:
    return None if "train" in specs else "no 'train' in it: the processor of the training split"


# split → {"name": …, option: …}
Split = Literal["train", "eval", "val", "test"]
ImageProcessors = Annotated[dict[Split, Annotated[Bound, IMAGE_PROCESSORS]], _check_train]
TextProcessors = Annotated[dict[Split, Annotated[Bound, TEXT_PROCESSORS]], _check_train]
SampleRatio = Annotated[float, check_not_negative]
# Names in use for an evaluation's split; the first that is there counts.
_EVAL_SPLITS: tuple[Split, ...] = ("eval", "val", "test")

_S = TypeVar("_S", bound=Source)


class Storage(Protocol):
    """Where samples lie, and which of them are the validation set."""

    @property
    def storage(self) -> Any: ...

    @property
    def val_storage(self) -> Any: ...

    @property
    def val_fraction(self) -> float: ...


def training_processor(name: str) -> Any:
    """Return the default of processors: one for the training split."""
    return {"train": {"name": name}}


@dataclass(frozen=True, kw_only=True)
class DataSetOptions:
    """Options of every data set.

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
    sample_ratio: SampleRatio = 1.0
    batch_size: Positive | None = None
    features: str | None = None


@runtime_checkable
class Stored(Protocol):
    """Options of a data set in files, which a check can look into without building it."""

    @property
    def stored(self) -> Storage:
        """Where its samples lie."""

    @property
    def is_endless(self) -> bool:
        """Whether it streams without a known length."""

    def open_first(self, storage: Any) -> tuple[str, Source]:
        """Return name and samples of the first part of a storage."""


def build_dataset(
    name: str,
    options: DataSetOptions,
    source: Source,
    text_processor: Callable[[str], str],
    eval_source: Source | None,
    length: int | None = None,
    missing: tuple[BadSample, ...] = (),
) -> DataSet:
    """Return a data set over its sources, which reads cached features where the options say so."""
    processors = options.vis_processor
    split = next((split for split in _EVAL_SPLITS if split in processors), None)
    dataset = DataSet(
        name,
        source,
        processors["train"].build(),
        text_processor,
        options.sample_ratio,
        length=length,
        batch_size=options.batch_size,
        eval_image_processor=processors[split].build() if split else None,
        eval_source=eval_source,
        missing=missing,
    )
    if options.features is None:
        return dataset
    from minigpt4.datasets.feature_source import with_features

    return with_features(dataset, options.features)


def split_sources(
    name: str, stored: Storage, read: Callable[[Any, Side], _S]
) -> tuple[_S, _S | None]:
    """Return what a training reads, and the validation set, if there is one.

    Raises:
        ConfigError: where two settings name a validation set.
    """
    if not stored.val_fraction:
        training = read(stored.storage, ALL)
        return training, None if stored.val_storage is None else read(stored.val_storage, ALL)
    if fault := validation_set_fault(stored):
        raise ConfigError(f"datasets.{name}: {fault}")
    sides = (Side("train", stored.val_fraction), Side("val", stored.val_fraction))
    training, held_out = (read(stored.storage, side) for side in sides)
    return training, held_out


def validation_set_fault(stored: Storage) -> str | None:
    """Return what is wrong with two settings that each name a validation set."""
    if stored.val_storage is not None and stored.val_fraction:
        return "val_storage and val_fraction both name what to leave out; take one of them"
    return None
