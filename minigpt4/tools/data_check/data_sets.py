"""Data sets of a training's YAML, or the rows of a file: read once, counted, and judged."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from minigpt4.assembly import build_datasets
from minigpt4.checked import CheckedConfig, bind_sections
from minigpt4.config import load_config, raise_faults
from minigpt4.config.checks import check_folder
from minigpt4.datasets.own_rows.pairs import PairOptions, check_storage, stream_rows
from minigpt4.datasets.samples import BadSample, DataSet
from minigpt4.errors import DataError, MiniGPT4Error
from minigpt4.files import JsonLines
from minigpt4.tools.data_check.figures import Figures
from minigpt4.tools.data_check.samples import Found, Looks, Rows, check_rows

if TYPE_CHECKING:
    from minigpt4.tools.data_check.tokens import Reader


def open_data(
    target: str, options: Sequence[str], image_root: str | None
) -> tuple["Reader | None", list[Rows]]:
    """Return the data sets of a YAML, with the reader of its language model, or a file's rows."""
    if Path(target).suffix.lower() not in (".yaml", ".yml"):
        if options:
            raise MiniGPT4Error("--options: only a YAML takes them")
        return None, [_rows_of_file(target, image_root)]
    if image_root:
        raise MiniGPT4Error("--image-root: a YAML names its own, datasets.X.image_root")
    config = load_config(target, options)
    # Only the tokenizer of the model is read: other files may still be missing.
    checked, faults = bind_sections(config, "data")
    of_model = [fault for fault in faults if fault.key.startswith("model")]
    raise_faults(config.path, [fault for fault in faults if fault not in of_model])
    from minigpt4.tools.data_check.tokens import build_reader

    return build_reader(checked, of_model), list(_rows_of_config(checked))


def check_data_set(
    rows: Rows, reader: "Reader | None", looks: Looks, samples: int, listed: JsonLines | None
) -> Figures:
    """Read one data set, print its figures and some samples, and list its bad rows."""
    figures = Figures(name=rows.name, reader=reader)
    shown: list[str] = []
    since = time.monotonic()
    with tqdm(unit="row", unit_scale=True, disable=None) as bar:
        for sample in check_rows(rows, looks):
            if isinstance(sample, BadSample):
                if listed:
                    listed.append(sample.row(rows.name))
            elif reader and len(shown) < samples:
                shown.append(reader.describe(sample, figures.good))
            figures.add(sample)
            bar.update()
    figures.seconds = time.monotonic() - since
    print("\n".join([*figures.lines(), *shown]))
    return figures


def judge(found: Sequence[Figures], most: int | float) -> None:
    """Raise DataError for more bad rows than a number, or a share of each data set."""
    for figures in found:
        bad = figures.causes.total()
        if bad > (most if isinstance(most, int) else most * figures.total):
            first = figures.first[0]
            raise DataError(
                f"{figures.name}: {bad:,} of {figures.total:,} rows are bad, more than "
                f"--max-bad {most}; the first is {first.key}: {first.reason}; --output FILE lists "
                "all"
            )
        if not figures.good:
            raise DataError(f"{figures.name}: holds no row to train on")


def _rows_of_file(target: str, image_root: str | None) -> Rows:
    if complaint := check_storage(target):
        raise DataError(complaint)
    if image_root and (complaint := check_folder(image_root)):
        raise MiniGPT4Error(f"--image-root: {complaint}")
    return Rows(target, partial(stream_rows, target, image_root))


def _rows_of_config(checked: CheckedConfig) -> Iterator[Rows]:
    """Yield the data sets of a YAML, and the held-out file of each."""
    for name, bound in checked.datasets.items():
        options = bound.options
        if not isinstance(options, PairOptions):
            alone = dataclasses.replace(checked, datasets={name: bound})
            (dataset,) = build_datasets(alone, images=True)
            yield Rows(name, partial(_samples_of, dataset), dataset.text_processor)
            continue
        # As a file: in little memory, and paths that a training refuses are only counted.
        caption, root = options.text_processor["train"].build(), options.image_root
        yield Rows(name, partial(stream_rows, options.storage, root), caption)
        if held_out := options.val_storage:
            yield Rows(f"{name}, val_storage", partial(stream_rows, held_out, root), caption)


def _samples_of(dataset: DataSet) -> Iterator[Found]:
    yield from ((bad, None) for bad in dataset.missing)
    for unit in range(dataset.source.units):
        yield from ((sample, None) for sample in dataset.source.read(unit))
