"""Run the frozen towers once over the pictures of a training's data sets, and keep the features."""

import argparse
from pathlib import Path

from minigpt4.apps.arguments import add_config_arguments
from minigpt4.config import load_config

_EPILOG = """
Put the folder into the YAML, as datasets.X.features: a training then reads it instead of the
pictures, and does not even load the towers. It serves every language model. The same command goes
on where it was cut short; under torchrun the work is shared out.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add_config_arguments(parser, "YAML of a training (train_configs/)")
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the features")
    add(
        "--dtype",
        choices=["auto", "fp16", "bf16", "fp32"],
        default="auto",
        help="numbers in the files; auto is the run's own arithmetic, which loses nothing",
    )


def run(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.cfg_path, arguments.options)
    from minigpt4.tools.feature_cache.feature_cache import cache_features

    cache_features(config, arguments.output, arguments.dtype)
