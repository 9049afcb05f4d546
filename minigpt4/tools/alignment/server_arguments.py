"""Server arguments: how a command is told which server to ask, how politely, and for how much.

Nothing heavy is imported until the arguments are read.
"""

import argparse
import math
import os
from typing import TYPE_CHECKING

from minigpt4.errors import ConfigError

if TYPE_CHECKING:
    from minigpt4.tools.alignment.asking import Server


def add_server_arguments(group: argparse._ArgumentGroup) -> None:
    """``--api-base``, ``--model`` and the limits of what is asked."""
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


def check_server_arguments(arguments: argparse.Namespace) -> None:
    """Hold the numbers against what they can be.

    Raises:
        ConfigError: for the first that is wrong.
    """
    for name in (
        *("concurrency", "requests_per_minute", "attempts", "timeout"),
        *("max_tokens_total", "max_cost"),
    ):
        number = getattr(arguments, name)
        if number is not None and not 0 < number < math.inf:
            raise ConfigError(f"{_option(name)}: {number:g} must be greater than 0")
    for name in ("retry_seconds", "price_in", "price_out"):
        number = getattr(arguments, name)
        if number is not None and not 0 <= number < math.inf:
            raise ConfigError(f"{_option(name)}: {number:g} must not be negative")
    if arguments.max_cost is not None and None in (arguments.price_in, arguments.price_out):
        raise ConfigError("--max-cost: needs --price-in and --price-out, of a million tokens")
    if not arguments.model.strip():
        raise ConfigError("--model: empty; say what the server calls its model")


def read_server(arguments: argparse.Namespace) -> "Server | None":
    """Whom to ask; None where no ``--api-base`` names it.

    Raises:
        ConfigError: for an address that is none, or a key that is none.
    """
    if not arguments.api_base:
        return None

    from minigpt4.tools.alignment.asking import Manners, Server
    from minigpt4.tools.alignment.completions import KEY, Endpoint
    from minigpt4.tools.alignment.ledger import Budget

    key = os.environ.get(KEY, "").strip()
    return Server(
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


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
