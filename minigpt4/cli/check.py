"""Check the config of a training, an evaluation or a chat without loading anything."""

import argparse
import logging
import sys

from minigpt4.apps.arguments import add_options_argument
from minigpt4.config import load_config
from minigpt4.errors import ConfigError

_KINDS = {"training": "a training", "evaluation": "an evaluation", "chat": "a chat"}

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("cfg", nargs="?", metavar="CFG", help="YAML to check")
    add("--cfg-path", metavar="CFG", help="the same, as for train.py")
    add_options_argument(parser)
    add("--print-config", action="store_true", help="print every value and where it came from")


def run(arguments: argparse.Namespace) -> None:
    if (arguments.cfg is None) == (arguments.cfg_path is None):
        raise ConfigError("check: name one YAML: python -m minigpt4 check CFG")
    config = load_config(arguments.cfg or arguments.cfg_path, arguments.options)
    from minigpt4.preflight.preflight import described, memory_report, preflight, purpose_of

    if arguments.print_config:
        sys.stdout.write(described(config))
    purpose = purpose_of(config)
    checked = preflight(config, purpose)
    if report := memory_report(checked):
        logger.info("%s", report)
    logger.info("%s: no fault found; it describes %s", config.path, _KINDS[purpose])
