"""Convert a checkpoint to safetensors, or back; the suffixes say which way."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pickled = ".pth, .pt, .bin"
    parser.add_argument("source", type=Path, metavar="IN", help=f"{pickled} or .safetensors")
    parser.add_argument(
        "target",
        type=Path,
        metavar="OUT",
        help=f".safetensors, or {pickled}; must not be there yet",
    )


def run(arguments: argparse.Namespace) -> None:
    from minigpt4.tools.export.conversion import convert_file

    convert_file(arguments.source, arguments.target)
