"""``python -m minigpt4 COMMAND``: everything that is not ``train.py`` or ``demo.py``."""

import argparse
import importlib
import logging
import os
import pkgutil
from collections.abc import Sequence

from minigpt4 import cli
from minigpt4.errors import run_guarded


def main(argv: Sequence[str] | None = None) -> None:
    """Pass the arguments to the command's module in ``minigpt4/cli``.

    Each module there has a docstring (its help), ``add_arguments`` and ``run``.
    """
    parser = argparse.ArgumentParser(prog="python -m minigpt4")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {}
    for entry in pkgutil.iter_modules(cli.__path__):
        module = importlib.import_module(f"minigpt4.cli.{entry.name}")
        name = entry.name.replace("_", "-")
        help_text = (module.__doc__ or "").splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=help_text, description=help_text))
        modules[name] = module
    arguments = parser.parse_args(argv)
    main_process = os.environ.get("RANK", "0") == "0"
    level = logging.INFO if main_process else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    modules[arguments.command].run(arguments)


if __name__ == "__main__":
    run_guarded(main)
