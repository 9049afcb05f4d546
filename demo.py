"""The chat page: a browser's view of ``minigpt4.chat``.

python demo.py --cfg-path eval_configs/tiny_eval.yaml
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from minigpt4.apps.arguments import (
    add_model_arguments,
    check_positive,
    open_socket,
    plan_chat,
    without_proxies,
)
from minigpt4.errors import ConfigError, run_guarded

EXAMPLES = Path(__file__).parent / "assets" / "examples"
AUTH = "MINIGPT4_AUTH"  # an environment variable: other users of a machine see command lines


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Chat with MiniGPT-4 in a browser.")
    add_model_arguments(parser)
    add = parser.add_argument
    add("--examples", type=Path, default=EXAMPLES, help="folder of pictures to click on the page")
    add("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    add("--port", type=int, default=7860)
    add("--share", action="store_true", help="a public link, through gradio.live")
    add(
        "--auth",
        metavar="USER:PASSWORD",
        default=os.environ.get(AUTH),
        help=f"ask for these; ${AUTH} says the same without showing it to others on this machine",
    )
    add("--max-waiting", type=int, default=64, metavar="N", help="questions that may wait")
    add(
        "--keep-minutes",
        type=float,
        default=10,
        metavar="M",
        help="how long a chat and its pictures outlive a closed page or a lost connection",
    )
    return parser.parse_args(argv)


def list_examples(folder: Path) -> list[Path]:
    from minigpt4.datasets.samples import IMAGE_SUFFIXES

    if not folder.is_dir():
        raise ConfigError(f"--examples {folder}: no such folder")
    return sorted(f for f in folder.iterdir() if f.suffix.lower().lstrip(".") in IMAGE_SUFFIXES)


def read_auth(text: str | None) -> tuple[str, str] | None:
    """Return user and password; an error does not repeat the text."""
    if text is None:
        return None
    user, _, password = text.partition(":")
    if not (user and password):
        raise ConfigError(f"--auth or {AUTH}: write USER:PASSWORD, neither of them empty")
    return user, password


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks itself whether it is up
    auth = read_auth(arguments.auth)
    check_positive(arguments, "max_waiting")
    if not 0 <= arguments.keep_minutes < float("inf"):
        raise ConfigError(f"--keep-minutes: {arguments.keep_minutes} is not a length of time")
    if not arguments.print_config:
        open_socket(arguments.host, arguments.port).close()  # a fault shows before the model loads
    examples = list_examples(arguments.examples)
    plan = plan_chat(arguments)
    if plan is None:
        return

    with without_proxies():  # gradio builds its client when it is imported
        from minigpt4.apps.page.serving import serve_page

    # As Ctrl-C does: uploaded files are deleted.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    serve_page(
        plan,
        examples=examples,
        places=arguments.max_waiting,
        keep=60 * arguments.keep_minutes,
        host=arguments.host,
        port=arguments.port,
        share=arguments.share,
        auth=auth,
    )


if __name__ == "__main__":
    run_guarded(main)
