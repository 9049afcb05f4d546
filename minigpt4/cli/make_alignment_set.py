"""Make a stage-2 set as the paper did: describe, polish, filter, review; resumable."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4.apps.arguments import add_model_arguments, open_socket, plan_chat
from minigpt4.errors import ConfigError
from minigpt4.tools.alignment.server_arguments import (
    add_server_arguments,
    check_server_arguments,
    read_server,
)

if TYPE_CHECKING:
    from minigpt4.tools.alignment.asking import Server

_EPILOG = """
The same command goes on wherever an earlier one was cut short; descriptions, replies and reviews
that are there are not made or paid for again. The key of a server comes from OPENAI_API_KEY alone.
Exit code: 0 when the set is written; 1 at a reached budget, or when nothing is kept; 2 for a
mistake, a server that refuses or has gone, or a full disk. See dataset/README_2_STAGE.md.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``make-alignment-set``."""
    parser.epilog = _EPILOG
    add_model_arguments(parser)
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder of the set")
    parser.add_argument(
        "--sample", type=int, metavar="N", help="so many pictures at random (the paper: 5000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default 0)")
    describe = parser.add_argument_group("describe")
    describe.add_argument("--num-beams", type=int, default=5, help="(default 5)")
    describe.add_argument(
        "--max-new-tokens", type=int, default=200, help="of one answer (default 200)"
    )
    describe.add_argument(
        "--batch-size", type=int, default=8, help="pictures described together (default 8)"
    )
    describe.add_argument(
        "--num-workers", type=int, default=4, help="threads that read pictures (default 4)"
    )
    _add_polish_arguments(parser.add_argument_group("polish"))
    review = parser.add_argument_group("review")
    review.add_argument(
        "--review", action="store_true", help="look at each pair on a page of this machine"
    )
    review.add_argument("--port", type=int, default=7861, help="of the page (default 7861)")


def _add_polish_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--polish",
        choices=("rules", "server"),
        help="by this program's rules or by a server (default: server with --api-base, else rules)",
    )
    add_server_arguments(group)


def run(arguments: argparse.Namespace) -> None:
    """Make the set; ends with a count."""
    _check(arguments)
    server = _read_server(arguments)
    if arguments.review and not arguments.print_config:
        open_socket("127.0.0.1", arguments.port).close()  # a fault shows before hours of work
    plan = plan_chat(arguments)
    if plan is None:
        return

    from minigpt4.chat import generation_options
    from minigpt4.chat.generation import change_options
    from minigpt4.tools.alignment.describing import Describing
    from minigpt4.tools.alignment.procedure import Job, make_alignment_set

    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request
    describing = Describing(
        arguments.num_beams, arguments.max_new_tokens, arguments.batch_size, arguments.num_workers
    )
    change_options(
        generation_options(plan.config),
        {"num_beams": describing.num_beams, "max_new_tokens": describing.max_new_tokens},
    )
    job = Job(
        arguments.images,
        arguments.output,
        arguments.sample,
        arguments.seed,
        describing,
        server,
        arguments.port if arguments.review else None,
    )
    if not make_alignment_set(plan, job):
        sys.exit(1)


def _check(arguments: argparse.Namespace) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("make-alignment-set: runs as one process; start it without torchrun")
    for name in ("sample", "num_beams", "max_new_tokens", "batch_size", "num_workers"):
        number = getattr(arguments, name)
        if number is not None and number <= 0:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option}: {number} must be greater than 0")
    check_server_arguments(arguments)


def _read_server(arguments: argparse.Namespace) -> "Server | None":
    """Who polishes; None for rules."""
    polish = arguments.polish or ("server" if arguments.api_base else "rules")
    if polish == "rules":
        if arguments.api_base:
            raise ConfigError("--polish rules: asks no server; leave out --api-base")
        return None
    if not arguments.api_base:
        raise ConfigError("--polish server: name it with --api-base, e.g. http://127.0.0.1:8000/v1")
    return read_server(arguments)
