"""Pretrain the towers of the embedded default (assets/tiny); resumable.

python -m assets.tiny.making --output output/tiny_towers
"""

import argparse
import logging

# A file of its own: processes that are spawned cannot import what is defined in a __main__.
from assets.tiny.making.towers import add_arguments, run
from minigpt4.errors import run_guarded


def main() -> None:
    """Parse the command line and pretrain."""
    parser = argparse.ArgumentParser(prog="python -m assets.tiny.making", description=__doc__)
    add_arguments(parser)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run(parser.parse_args())


if __name__ == "__main__":
    run_guarded(main)
