"""Check the config of a training or of a chat without loading anything."""

import argparse
import logging

from minigpt4.config import check_config, load_config

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``check``."""
    parser.add_argument("--cfg-path", required=True, help="YAML to check")
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="a.b=c", help="settings on top of the YAML"
    )


def run(arguments: argparse.Namespace) -> None:
    """Say that the config is sound, or raise its faults."""
    config = load_config(arguments.cfg_path, arguments.options)
    from minigpt4.chat import check_chat
    from minigpt4.runners.preparation import check_run

    # An evaluation YAML names a task at most; whatever sets a learning rate is a training.
    trains = "max_epoch" in config.run or "init_lr" in config.run
    if trains:
        check_config(config, extra=check_chat, across=check_run)
    else:
        check_config(config, sections=("model",), extra=check_chat)
    kind = "training" if trains else "chat"
    logger.info("%s: no fault found; it describes a %s", config.path, kind)
