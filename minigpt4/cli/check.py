"""Check the config of a training, an evaluation or a chat without loading anything."""

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
    from minigpt4.runners.preparation import check_evaluation, check_training

    # A chat's YAML names a task at most; whatever sets a learning rate is a training.
    if config.run.get("evaluate"):
        kind = "an evaluation"
        check_evaluation(config)
    elif "max_epoch" in config.run or "init_lr" in config.run:
        kind = "a training"
        check_training(config)
    else:
        kind = "a chat"
        check_config(config, sections=("model",), extra=check_chat)
    logger.info("%s: no fault found; it describes %s", config.path, kind)
