"""Make a stage-2 set as the paper did: describe, polish, filter, review; resumable."""

import argparse
import logging
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4.errors import ConfigError
from minigpt4.frontends.arguments import add_model_arguments, open_socket, plan_chat

if TYPE_CHECKING:
    from minigpt4.alignment.procedure import Asked

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
    group.add_argument(
        "--api-base", metavar="URL", help="an OpenAI-compatible server, up to and with /v1"
    )
    group.add_argument(
        "--model", default="gpt-3.5-turbo", help="of the server (default gpt-3.5-turbo)"
    )
    group.add_argument(
        "--concurrency", type=int, default=4, help="requests under way at a time (default 4)"
    )
    group.add_argument(
        "--requests-per-minute", type=float, metavar="N", help="at most (default: no limit)"
    )
    group.add_argument(
        "--attempts", type=int, default=6, help="for one text in one run (default 6)"
    )
    group.add_argument(
        "--retry-seconds",
        type=float,
        default=1.0,
        metavar="S",
        help="pause before the second attempt, doubled before each one after it (default 1)",
    )
    group.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="for one reply (default 60)"
    )
    group.add_argument(
        "--max-tokens-total",
        type=int,
        metavar="N",
        help="read and written tokens of all runs together, at which to stop",
    )
    group.add_argument(
        "--max-cost", type=float, metavar="X", help="likewise, in the currency of the prices"
    )
    group.add_argument(
        "--price-in", type=float, metavar="X", help="of a million tokens that the server reads"
    )
    group.add_argument(
        "--price-out", type=float, metavar="X", help="of a million tokens that it writes"
    )


def run(arguments: argparse.Namespace) -> None:
    """Make the set; ends with a count."""
    _check(arguments)
    server = _read_server(arguments)
    if arguments.review and not arguments.print_config:
        open_socket("127.0.0.1", arguments.port).close()  # a fault shows before hours of work
    plan = plan_chat(arguments)
    if plan is None:
        return

    from minigpt4.alignment.describing import Describing
    from minigpt4.alignment.procedure import Job, make_alignment_set
    from minigpt4.chat import generation_options
    from minigpt4.chat.generation import change_options

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
    for name in (
        *("sample", "num_beams", "max_new_tokens", "batch_size", "num_workers", "concurrency"),
        *("requests_per_minute", "attempts", "timeout", "max_tokens_total", "max_cost"),
    ):
        number = getattr(arguments, name)
        if number is not None and not 0 < number < math.inf:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option}: {number:g} must be greater than 0")
    for name in ("retry_seconds", "price_in", "price_out"):
        number = getattr(arguments, name)
        if number is not None and not 0 <= number < math.inf:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option}: {number:g} must not be negative")
    if arguments.max_cost is not None and None in (arguments.price_in, arguments.price_out):
        raise ConfigError("--max-cost: needs --price-in and --price-out, of a million tokens")


def _read_server(arguments: argparse.Namespace) -> "Asked | None":
    """Who polishes; None for rules."""
    polish = arguments.polish or ("server" if arguments.api_base else "rules")
    if polish == "rules":
        if arguments.api_base:
            raise ConfigError("--polish rules: asks no server; leave out --api-base")
        return None
    if not arguments.api_base:
        raise ConfigError("--polish server: name it with --api-base, e.g. http://127.0.0.1:8000/v1")
    if not arguments.model.strip():
        raise ConfigError("--model: empty; say what the server calls its model")

    from minigpt4.alignment.asking import Manners
    from minigpt4.alignment.completions import KEY, Endpoint
    from minigpt4.alignment.ledger import Budget
    from minigpt4.alignment.procedure import Asked

    key = os.environ.get(KEY, "").strip()
    return Asked(
        Endpoint(arguments.api_base, arguments.model, key, arguments.timeout),
        Manners(
            arguments.concurrency,
            arguments.requests_per_minute,
            arguments.attempts,
            arguments.retry_seconds,
        ),
        Budget(
            arguments.max_tokens_total,
            arguments.max_cost,
            arguments.price_in or 0.0,
            arguments.price_out or 0.0,
        ),
    )
