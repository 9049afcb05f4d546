"""Server: the command-line arguments that say whom to ask, how often and for how much."""

import argparse
import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple
from urllib.parse import urlsplit

from minigpt4.errors import ConfigError

KEY = "OPENAI_API_KEY"  # of the environment; other users of a machine see command lines

# Option, type, default, whether it may be 0, help.
_NUMBERS: tuple[tuple[str, type, float | None, bool, str], ...] = (
    ("--concurrency", int, 4, False, "requests under way at a time (default 4)"),
    ("--requests-per-minute", float, None, False, "at most (default: no limit)"),
    ("--attempts", int, 6, False, "for one text in one run (default 6)"),
    ("--retry-seconds", float, 1.0, True, "first pause after a server error, then doubled"),
    ("--timeout", float, 60.0, False, "seconds to wait for a reply (default 60)"),
    ("--max-tokens-total", int, None, False, "tokens read and written by all runs: stop there"),
    ("--max-cost", float, None, False, "likewise, in the currency of the prices"),
    ("--price-in", float, None, True, "of a million tokens that the server reads"),
    ("--price-out", float, None, True, "of a million tokens that it writes"),
)


class Tokens(NamedTuple):
    """Tokens that a server read and wrote."""

    prompt: int = 0
    completion: int = 0


@dataclass(frozen=True)
class Server:
    """A server that speaks OpenAI's chat completions; the fields are the options' values."""

    api_base: str
    model: str
    concurrency: int = 4
    requests_per_minute: float | None = None
    attempts: int = 6
    retry_seconds: float = 1.0
    timeout: float = 60.0
    max_tokens_total: int | None = None
    max_cost: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    key: str = field(default="", repr=False)  # empty for a server that asks for none

    def cost(self, tokens: Tokens) -> float:
        prices = self.price_in or 0.0, self.price_out or 0.0
        return (tokens.prompt * prices[0] + tokens.completion * prices[1]) / 1e6

    def exceeded_limit(self, parts: Sequence[Tokens]) -> str | None:
        """Return the option whose limit is less than all these tokens together."""
        most = self.max_tokens_total
        if most is not None and sum(map(sum, parts)) > most:
            return f"--max-tokens-total {most}"
        if self.max_cost is not None and sum(map(self.cost, parts)) > self.max_cost:
            return f"--max-cost {self.max_cost:g}"
        return None


def add_server_arguments(group: argparse._ArgumentGroup) -> None:
    """Add ``--api-base``, ``--model`` and the limits of what is asked."""
    add = group.add_argument
    add("--api-base", metavar="URL", help="an OpenAI-compatible server, up to and with /v1")
    add("--model", default="gpt-3.5-turbo", help="of the server (default gpt-3.5-turbo)")
    for option, kind, default, _, help_text in _NUMBERS:
        add(option, type=kind, default=default, metavar="N", help=help_text)


def read_server(arguments: argparse.Namespace) -> Server | None:
    """Check the arguments and return the server; None without ``--api-base``."""
    for option, _, _, may_be_zero, _ in _NUMBERS:
        number = getattr(arguments, option[2:].replace("-", "_"))
        if number is not None and not (0 < number < math.inf or (may_be_zero and number == 0)):
            rule = "not be negative" if may_be_zero else "be greater than 0"
            raise ConfigError(f"{option}: {number:g} must {rule}")
    if arguments.max_cost is not None and None in (arguments.price_in, arguments.price_out):
        raise ConfigError("--max-cost: needs --price-in and --price-out, of a million tokens")
    if not arguments.model.strip():
        raise ConfigError("--model: empty; say what the server calls its model")
    if not arguments.api_base:
        return None
    _check_address(arguments.api_base)
    key = os.environ.get(KEY, "").strip()
    # A header takes nothing else, and the library's complaint would show the key.
    if not all("!" <= character <= "~" for character in key):
        raise ConfigError(f"${KEY}: holds characters that no key has; set it again")
    if importlib.util.find_spec("openai") is None:
        text = "needs openai, which is not installed; pip install -e '.[alignment]'"
        raise ConfigError(f"--api-base: {text}")
    names = [field.name for field in fields(Server) if field.name != "key"]
    return Server(**{name: getattr(arguments, name) for name in names}, key=key)


def _check_address(api_base: str) -> None:
    try:
        address = urlsplit(api_base)
        named = address.scheme in ("http", "https") and address.hostname and address.port != 0
        valid = named and api_base.isprintable()
    except ValueError:
        valid = False
    if not valid:
        shown = ascii(api_base)[1:-1]
        raise ConfigError(f"--api-base {shown}: is no address such as http://127.0.0.1:8000/v1")
    if address.username or address.password or address.query or address.fragment:
        text = "an address alone, without user, password or ?query; a key comes from"
        raise ConfigError(f"--api-base: write {text} ${KEY}")
