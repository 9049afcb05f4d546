"""Make a stage-2 set as the paper did: describe, polish, filter, review; resumable."""

import argparse
import os
import sys
from pathlib import Path

from minigpt4.apps.arguments import add_model_arguments, check_positive, open_socket, plan_chat
from minigpt4.errors import ConfigError
from minigpt4.tools.alignment.server import Server, add_server_arguments, read_server

_EPILOG = """
The same command goes on wherever an earlier one was cut short; descriptions, replies and reviews
that are there are not made or paid for again. The key of a server comes from OPENAI_API_KEY alone.
Exit code: 0 when the set is written; 1 at a reached budget, or when nothing is kept; 2 for a
mistake, a server that refuses or has gone, or a full disk. See dataset/README_2_STAGE.md.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add_model_arguments(parser)
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of pictures")
    add("--output", type=Path, required=True, help="folder of the set")
    add("--sample", type=int, metavar="N", help="so many pictures at random (the paper: 5000)")
    add("--seed", type=int, default=0, help="of the drawing (default 0)")
    add = parser.add_argument_group("describe").add_argument
    add("--num-beams", type=int, default=5, help="(default 5)")
    add("--max-new-tokens", type=int, default=200, help="of one answer (default 200)")
    add("--batch-size", type=int, default=8, help="pictures described together (default 8)")
    add("--num-workers", type=int, default=4, help="threads that read pictures (default 4)")
    polish = parser.add_argument_group("polish")
    polish.add_argument(
        "--polish",
        choices=("rules", "server"),
        help="by this program's rules or by a server (default: server with --api-base, else rules)",
    )
    add_server_arguments(polish)
    add = parser.add_argument_group("review").add_argument
    add("--review", action="store_true", help="look at each pair on a page of this machine")
    add("--port", type=int, default=7861, help="of the page (default 7861)")


def run(arguments: argparse.Namespace) -> None:
    server = _check(arguments)
    if arguments.review and not arguments.print_config:
        open_socket("127.0.0.1", arguments.port).close()  # a fault shows before hours of work
    plan = plan_chat(arguments)
    if plan is None:
        return

    from minigpt4.conversation.options import change_options
    from minigpt4.tools.alignment.describing import Describing
    from minigpt4.tools.alignment.procedure import Job, make_alignment_set

    describing = Describing(
        arguments.num_beams, arguments.max_new_tokens, arguments.batch_size, arguments.num_workers
    )
    change_options(
        plan.checked.generation,
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


def _check(arguments: argparse.Namespace) -> Server | None:
    """Check the arguments; return the server that polishes, None for rules."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("make-alignment-set: runs as one process; start it without torchrun")
    numbers = ("sample", "num_beams", "max_new_tokens", "batch_size", "num_workers")
    check_positive(arguments, *numbers)
    if arguments.polish == "rules" and arguments.api_base:
        raise ConfigError("--polish rules: asks no server; leave out --api-base")
    if arguments.polish == "server" and not arguments.api_base:
        raise ConfigError("--polish server: name it with --api-base, e.g. http://127.0.0.1:8000/v1")
    return read_server(arguments)
