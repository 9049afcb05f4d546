"""Read every row of a training's data sets, or of a file: counts, lengths, what is bad, where."""

import argparse
from pathlib import Path

from minigpt4.apps.arguments import add_options_argument

_EPILOG = """
A YAML is checked with the tokens of its language model, whose tokenizer alone is read; a file,
folder or shards are checked as the storage of a data set of type pairs, with words. A row is bad
where a training would skip it, or where its id is that of an earlier one.
Exit code 2 where more rows are bad than --max-bad allows.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add = parser.add_argument
    add(
        "target", metavar="CFG|FILE", help="YAML of a training; or jsonl, json, csv, folder, shards"
    )
    add_options_argument(parser, "a YAML")
    add("--image-root", metavar="DIR", help="of a FILE: folder that its rows' paths begin in")
    add(
        "--max-bad",
        type=_limit,
        default=0,
        metavar="N",
        help="bad rows that are allowed; 0.02 or 2%% is a share of each data set",
    )
    add(
        "--images",
        choices=["decode", "exist", "skip"],
        default="decode",
        help="decode every picture, see only whether its file exists, or look at none",
    )
    add("--samples", type=int, default=2, help="rows that are shown as the model reads them")
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    add("--output", type=Path, metavar="FILE", help="list every bad row there, as JSON lines")


def _limit(text: str) -> int | float:
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        whole = text.isdigit()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor a share") from None
    if value < 0 or (not whole and not value <= 1):
        raise argparse.ArgumentTypeError(f"{text} is neither a number of rows nor a share of them")
    return int(text) if whole else value


def run(arguments: argparse.Namespace) -> None:
    from minigpt4.files import JsonLines, write_json
    from minigpt4.tools.data_check.data_sets import check_data_set, judge, open_data

    reader, data = open_data(arguments.target, arguments.options, arguments.image_root)
    listed = JsonLines(arguments.output) if arguments.output else None
    if listed:
        listed.clear()
    looks, samples = arguments.images, arguments.samples
    found = [check_data_set(rows, reader, looks, samples, listed) for rows in data]
    if arguments.json:
        write_json(arguments.json, [figures.as_json() for figures in found])
    judge(found, arguments.max_bad)
