"""Builder of ``type: pairs``: a user's own rows → a data set."""

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

from minigpt4.config.checks import check_folder, check_share
from minigpt4.datasets.caption_shards import missing_shards
from minigpt4.datasets.options import (
    DataSetOptions,
    TextProcessors,
    build_dataset,
    split_sources,
    training_processor,
)
from minigpt4.datasets.own_rows.pairs import (
    ListSource,
    RowSource,
    check_storage,
    names_shards,
    open_storage,
)
from minigpt4.datasets.samples import DataSet, Source
from minigpt4.registry import BUILDERS, Hidden, Section

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PairOptions(DataSetOptions):
    """Options of a user's own rows.

    Attributes:
        storage: jsonl, json, csv or tsv file; folder of images with texts next to them, with a
            metadata.jsonl or .csv, or of the form of cc_sbu_align; shards.
        val_storage: Validation set: rows that an evaluation reads instead, of any of these forms.
        val_fraction: Fraction of the rows that an evaluation reads and a training does not, chosen
            by their images; 0: both read all.
        image_root: Folder that the rows' paths begin in, and which none may leave; without it that
            of the file.
        text_processor: Processor of captions, by split; other words reach the model as they are.
    """

    storage: Annotated[str | list[str], check_storage]
    val_storage: Annotated[str | list[str], check_storage] | None = None
    val_fraction: Annotated[float, check_share] = 0.0
    image_root: Annotated[str, check_folder] | None = None
    text_processor: TextProcessors = field(
        default_factory=partial(training_processor, "plain_text")
    )

    @property
    def stored(self) -> "PairOptions":
        return self

    @property
    def is_endless(self) -> bool:
        return names_shards(self.storage)

    def open_first(self, storage: str | list[str]) -> tuple[str, Source]:
        return str(storage), open_storage(storage, self.image_root)


@BUILDERS.register("pairs")
def build_pairs(name: Annotated[str, Hidden], options: Annotated[PairOptions, Section]) -> DataSet:
    """Build a user's own rows: images with captions, instructions and answers, or conversations."""
    source, held_out = split_sources(
        name, options, lambda rows, side: open_storage(rows, options.image_root, side)
    )
    length = source.length if isinstance(source, RowSource | ListSource) else None
    if length is not None and length < source.units:
        text = "datasets.%s: %d of %d rows cannot be used; check-data lists them"
        logger.warning(text, name, source.units - length, source.units)
    missing = missing_shards(name, options.storage) if options.is_endless else ()
    captions = options.text_processor["train"].build()
    return build_dataset(name, options, source, captions, held_out, length, missing)
