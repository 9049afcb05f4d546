"""Generate for every sample of a YAML's data sets, score the outputs, write rows and a summary."""

import argparse
import dataclasses
from pathlib import Path

from minigpt4.config import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``evaluate``."""
    parser.add_argument(
        "--cfg-path", required=True, help="YAML of an evaluation or of a training (its data sets)"
    )
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="a.b=c", help="settings on top of the YAML"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/evaluate"),
        help="folder for the results; run.output_dir does not count here",
    )


def run(arguments: argparse.Namespace) -> None:
    """Evaluate; ends with a table."""
    config = load_config(arguments.cfg_path, arguments.options)
    from minigpt4.runners.evaluation import run_evaluation

    changes = {"evaluate": True, "output_dir": str(arguments.output)}
    run_evaluation(dataclasses.replace(config, run=config.run | changes))
