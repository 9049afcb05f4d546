"""Draw the tiny world's data sets: shards for stage 1, pairs for stage 2, held-out scenes."""

import argparse
from pathlib import Path

from minigpt4.tools.tiny_world.data_sets import write_data_sets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("output/scenes"), help="folder to fill")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other scenes")
    parser.add_argument("--pairs", type=int, default=5000, help="image-caption pairs for stage 1")
    parser.add_argument("--descriptions", type=int, default=500, help="pairs for stage 2")
    parser.add_argument("--heldout", type=int, default=300, help="scenes in each held-out split")
    parser.add_argument(
        "--shuffle-captions",
        action="store_true",
        help="give every stage-1 picture another picture's caption: a control that must not learn",
    )


def run(arguments: argparse.Namespace) -> None:
    write_data_sets(
        arguments.output,
        arguments.seed,
        pairs=arguments.pairs,
        descriptions=arguments.descriptions,
        heldout=arguments.heldout,
        shuffle_captions=arguments.shuffle_captions,
    )
