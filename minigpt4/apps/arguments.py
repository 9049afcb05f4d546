"""Arguments: what several commands have on their command line → a chat and a port that are ready.

Nothing heavy is imported until the arguments are parsed: a wrong one fails at once.
"""

import argparse
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt4.config import Config, load_config
from minigpt4.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from minigpt4.chat import Chat
    from minigpt4.checked import CheckedConfig

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")

logger = logging.getLogger(__name__)


def add_options_argument(parser: argparse.ArgumentParser, of: str = "the YAML") -> None:
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="a.b=c", help=f"settings on top of {of}"
    )


def add_config_arguments(parser: argparse.ArgumentParser, text: str, required: bool = True) -> None:
    """Add ``--cfg-path``, of which ``text`` is the help, and ``--options``."""
    parser.add_argument("--cfg-path", required=required, help=text)
    add_options_argument(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-path``, ``--options``, ``--device``, ``--gpu-id`` and ``--print-config``."""
    add_config_arguments(parser, "YAML of the chat (eval_configs/)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu", "mps"), default="auto")
    parser.add_argument("--gpu-id", type=int, default=0, help="which GPU (default 0)")
    parser.add_argument(
        "--print-config", action="store_true", help="print every value and where it came from"
    )


def check_positive(arguments: argparse.Namespace, *names: str) -> None:
    """Raise ConfigError for a number that is given and not greater than 0."""
    for name in names:
        number = getattr(arguments, name)
        if number is not None and not number > 0:
            raise ConfigError(f"--{name.replace('_', '-')}: {number} must be greater than 0")


def check_text(arguments: argparse.Namespace, *names: str) -> None:
    """Raise ConfigError for a text that is given and empty."""
    for name in names:
        text = getattr(arguments, name)
        if text is not None and not text.strip():
            raise ConfigError(f"--{name}: empty; write a text")


@dataclass(frozen=True)
class ChatPlan:
    """A checked chat that is not yet loaded."""

    checked: "CheckedConfig"
    device: "torch.device"

    @property
    def config(self) -> "Config":
        return self.checked.config

    def load(self) -> "Chat":
        from minigpt4.chat import build_chat

        return build_chat(self.checked, self.device)


def plan_chat(arguments: argparse.Namespace) -> ChatPlan | None:
    """Check everything before anything is loaded, and log the memory it should need.

    Return None if the config was only to be printed; raise a ConfigError with a line for every
    error.
    """
    config = load_config(arguments.cfg_path, arguments.options)

    from minigpt4.chat import choose_device
    from minigpt4.errors import Fault
    from minigpt4.preflight.preflight import described, memory_report, preflight

    if arguments.print_config:
        sys.stdout.write(described(config))
    device, others = None, []
    try:
        device = choose_device(arguments.device, arguments.gpu_id)
    except ConfigError as error:
        key, _, text = str(error).partition(": ")
        others.append(Fault(key, text))
    checked = preflight(config, "chat", device.type if device else arguments.device, others)
    assert device is not None  # else that was a fault
    if arguments.print_config:
        return None
    if memory := memory_report(checked, device.type):
        logger.info("%s", memory)
    return ChatPlan(checked, device)


def open_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket; raise ConfigError if there can be none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        text = f"--host {host} --port {port}: cannot serve there ({error})"
        raise ConfigError(f"{text}; choose another --port") from error
    # Connections inherit it; asyncio does not set it, and a reply would wait 40 ms for an ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


@contextlib.contextmanager
def without_proxies() -> Iterator[None]:
    """Hide the proxies of the environment from a library that sends requests to this machine."""
    names = [name for name in os.environ if name.lower() in _PROXIES]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)
