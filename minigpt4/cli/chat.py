"""Chat in the terminal: at the keyboard, with lines from a pipe, or one question with --prompt."""

import argparse
import io
import os
import sys
from pathlib import Path

from minigpt4.apps.arguments import add_model_arguments, plan_chat

_EPILOG = """
At the keyboard /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves. From a pipe each
line is a question or a command, an empty line stands behind each answer, and the first mistake ends
it with exit code 2. Only answers go to stdout.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EPILOG
    add_model_arguments(parser)
    parser.add_argument(
        "--image",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="shown with the first question; several times for several pictures",
    )
    parser.add_argument("--prompt", help="ask this, print the answer, and end")


def run(arguments: argparse.Namespace) -> None:
    plan = plan_chat(arguments)
    if plan is None:
        return

    from minigpt4.apps.terminal import Terminal, tell, typed_lines
    from minigpt4.chat import open_image

    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # whatever the locale cannot hold
    typed = sys.stdin is not None and sys.stdin.isatty()
    watched = arguments.prompt is None and typed and sys.stdout.isatty()
    for picture in arguments.image:
        open_image(picture)  # before the model loads
    try:
        end = "\n" if watched or arguments.prompt is not None else "\n\n"
        terminal = Terminal(plan.load(), arguments.image, watched, end)
        if arguments.prompt is not None:
            terminal.ask(arguments.prompt)
        elif watched:
            tell("ask about the picture, or type /help")
            terminal.follow(typed_lines())
        else:
            terminal.follow(sys.stdin or ())
        sys.stdout.flush()
    except BrokenPipeError:  # who read the answers has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
