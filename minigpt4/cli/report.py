"""One page on runs and evaluations: curves, samples, failures, what differs."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "folders",
        type=Path,
        nargs="+",
        metavar="RUN_DIR",
        help="folder of a run (with log.txt) or of an evaluation (with summary.json)",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="for report.html and the PNGs")


def run(arguments: argparse.Namespace) -> None:
    from minigpt4.tools.report.making import make_report

    print(f"report: {make_report(arguments.folders, arguments.output)}")
