"""Read every sample of webdataset shards, and tell how many are bad, which, and why."""

import argparse
import os
import sys
from pathlib import Path

_EPILOG = """
Pictures are decoded whole and captions processed, as a training with the default processors does.
Of a sample's json only "caption" counts; img2dataset's "status", "width" and so on decide nothing.
Exit code: 0 when every sample is good; 1 when samples or shards are bad, or there is no sample;
2 for a mistake, such as a pattern that names no shard on disk.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add = parser.add_argument
    add(
        "patterns",
        nargs="+",
        metavar="PATTERN",
        help="as build_info.storage: braces ('shards/{00000..00010}.tar'), globs, folders, tars",
    )
    add(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes, each of which reads whole shards; 0 reads in this one",
    )
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    add("--output", type=Path, metavar="FILE", help="list every bad sample there, as JSON lines")


def run(arguments: argparse.Namespace) -> None:
    from minigpt4.files import JsonLines, write_json
    from minigpt4.tools.data_check.shards import check_shards

    listed = JsonLines(arguments.output) if arguments.output else None
    figures = check_shards(arguments.patterns, arguments.workers, listed)
    if arguments.output and figures.causes:
        print(f"all of them: {arguments.output}")
    if arguments.json:
        write_json(arguments.json, figures.as_json())
    if figures.causes or not figures.good:
        sys.exit(1)
