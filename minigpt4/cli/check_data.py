"""Read every row of a training's data sets, or of a file: counts, lengths, what is bad, where."""

import argparse
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

from minigpt4.config import load_config, raise_faults
from minigpt4.errors import DataError, MiniGPT4Error, one_line
from minigpt4.files import write_atomically
from minigpt4.registry import Fault

if TYPE_CHECKING:
    from minigpt4.checked import CheckedConfig
    from minigpt4.datasets.samples import DataSet
    from minigpt4.tools.data_check.figures import Figures
    from minigpt4.tools.data_check.reader import Reader
    from minigpt4.tools.data_check.reading import Found, Rows

_EPILOG = """
A YAML is checked with the tokens of its language model, whose tokenizer alone is read; a file,
folder or shards are checked as the storage of a data set of type pairs, with words. A row is bad
where a training would skip it, or where its id is that of an earlier one.
Exit code 2 where more rows are bad than --max-bad allows.
"""

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``check-data``."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "target", metavar="CFG|FILE", help="YAML of a training; or jsonl, json, csv, folder, shards"
    )
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="a.b=c", help="settings on top of a YAML"
    )
    parser.add_argument(
        "--image-root", metavar="DIR", help="of a FILE: folder that its rows' paths begin in"
    )
    parser.add_argument(
        "--max-bad",
        type=_limit,
        default=0,
        metavar="N",
        help="bad rows that are allowed; 0.02 or 2%% is a share of each data set",
    )
    parser.add_argument(
        "--images",
        choices=["decode", "exist", "skip"],
        default="decode",
        help="decode every picture, see only whether its file exists, or look at none",
    )
    parser.add_argument(
        "--samples", type=int, default=2, help="rows that are shown as the model reads them"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="list every bad row there, as JSON lines"
    )


def _limit(text: str) -> int | float:
    """A number of rows, or a share of them."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        whole = text.isdigit()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor a share") from None
    if value < 0 or (not whole and not value <= 1):
        raise argparse.ArgumentTypeError(f"{text} is neither a number of rows nor a share of them")
    return int(text) if whole else value


def run(arguments: argparse.Namespace) -> None:
    """Check and print.

    Raises:
        DataError: when too much is bad.
    """
    target = Path(arguments.target)
    if target.suffix.lower() in (".yaml", ".yml"):
        if arguments.image_root:
            raise MiniGPT4Error("--image-root: a YAML names its own, datasets.X.image_root")
        from minigpt4.checked import bind_sections

        config = load_config(target, arguments.options)
        # Of the model only its reading counts here: the others' files may still be missing.
        checked, faults = bind_sections(config, "data")
        of_model = [fault for fault in faults if fault.key.startswith("model")]
        raise_faults(config.path, [fault for fault in faults if fault not in of_model])
        reader, data = _reader(checked, of_model), list(_rows_of_config(checked))
    else:
        if arguments.options:
            raise MiniGPT4Error("--options: only a YAML takes them")
        reader, data = None, [_rows_of_file(arguments.target, arguments.image_root)]
    with _listing(arguments.output) as listed:
        found = [_check(rows, reader, arguments, listed) for rows in data]
    if arguments.json:
        told = json.dumps([figures.as_json() for figures in found], indent=2) + "\n"
        write_atomically(arguments.json, lambda file: file.write(told.encode()))
    _judge(found, arguments.max_bad)


def _check(
    rows: "Rows", reader: "Reader | None", arguments: argparse.Namespace, listed: TextIO | None
) -> "Figures":
    """Read one data set, and print what is found in it."""
    from minigpt4.datasets.samples import BadSample
    from minigpt4.tools.data_check.figures import Figures
    from minigpt4.tools.data_check.reading import looked_at

    figures = Figures(rows.name, reader)
    shown: list[str] = []
    since = time.monotonic()
    with tqdm(unit="row", unit_scale=True, disable=None) as bar:
        for sample in looked_at(rows, arguments.images):
            if isinstance(sample, BadSample):
                if listed:
                    listed.write(json.dumps(sample.row(rows.name)) + "\n")
            elif reader and len(shown) < arguments.samples:
                shown.append(reader.describe(sample, figures.good))
            figures.add(sample)
            bar.update()
    figures.seconds = time.monotonic() - since
    print("\n".join([*figures.lines(), *shown]))
    return figures


def _judge(found: "list[Figures]", most: int | float) -> None:
    for figures in found:
        allowed = most if isinstance(most, int) else most * figures.total
        if figures.bad > allowed:
            first = figures.first[0]
            raise DataError(
                f"{figures.name}: {figures.bad:,} of {figures.total:,} rows are bad, more than "
                f"--max-bad {most}; the first is {first.key}: {first.reason}; --output FILE lists "
                "all"
            )
        if not figures.good:
            raise DataError(f"{figures.name}: holds no row to train on")


@contextlib.contextmanager
def _listing(file: Path | None) -> Iterator[TextIO | None]:
    if file is None:
        yield None
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "w", encoding="utf-8") as opened:
            yield opened
    except OSError as error:
        raise MiniGPT4Error(f"{file}: cannot be written ({one_line(error)})") from error


def _rows_of_file(target: str, image_root: str | None) -> "Rows":
    from minigpt4.config.checks import check_folder
    from minigpt4.datasets.own_rows.pairs import check_storage, stream_rows
    from minigpt4.tools.data_check.reading import Rows

    if complaint := check_storage(target):
        raise DataError(complaint)
    if image_root and (complaint := check_folder(image_root)):
        raise MiniGPT4Error(f"--image-root: {complaint}")
    return Rows(target, partial(stream_rows, target, image_root))


def _rows_of_config(checked: "CheckedConfig") -> "Iterator[Rows]":
    """The data sets of a YAML, and what each holds out for an evaluation in a file of its own."""
    from minigpt4.assembly import build_datasets
    from minigpt4.datasets.own_rows.builder import PairOptions
    from minigpt4.datasets.own_rows.pairs import stream_rows
    from minigpt4.tools.data_check.reading import Rows

    for name, bound in checked.datasets.items():
        options = bound.options
        if not isinstance(options, PairOptions):
            alone = dataclasses.replace(checked, datasets={name: bound})
            (dataset,) = build_datasets(alone, images=True)
            yield Rows(name, partial(_samples_of, dataset), dataset.text_processor)
            continue
        # As a file they are read in little memory, and paths that are refused are only counted.
        caption, root = options.text_processor["train"].build(), options.image_root
        yield Rows(name, partial(stream_rows, options.storage, root), caption)
        if held_out := options.val_storage:
            yield Rows(f"{name}, val_storage", partial(stream_rows, held_out, root), caption)


def _samples_of(dataset: "DataSet") -> "Iterator[Found]":
    yield from ((bad, None) for bad in dataset.missing)
    for unit in range(dataset.source.units):
        yield from ((sample, None) for sample in dataset.source.read(unit))


def _reader(checked: "CheckedConfig", faults: list[Fault]) -> "Reader | None":
    """The language model's reading of a row; None where too little is known of it."""
    from transformers import AutoConfig

    from minigpt4.models.language_model import most_positions
    from minigpt4.models.tokenizer import load_tokenizer
    from minigpt4.registry import UnknownOptionError
    from minigpt4.tasks.image_text_pretrain import ImageTextPretrainTask
    from minigpt4.tools.data_check.reader import Reader

    options = checked.model_options
    try:
        return Reader(
            load_tokenizer(options.llama_model, options.bos),
            ImageTextPretrainTask(
                options.load_prompts(), seed=0, rank=0, template=checked.template
            ),
            options.image_tokens,
            options.max_txt_len,
            options.end_sym,
            most_positions(AutoConfig.from_pretrained(options.llama_model)),
        )
    except (UnknownOptionError, AttributeError):  # the latter of a plug-in's model
        told = f"{faults[0].key}: {faults[0].text}" if faults else f"arch {checked.config.arch}"
        logger.warning("lengths are told in words, not tokens: %s", told)
        return None
